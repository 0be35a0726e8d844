"""Our schema is Hubble's, field by field, and our values are its messages."""

from __future__ import annotations

import json
from enum import EnumType, IntEnum, IntFlag
from typing import Any

import pytest
from google.protobuf import json_format

from k8sdatapath.errors import ModelError
from k8sdatapath.hubble import wire
from k8sdatapath.hubble.convert import field_mask, from_proto, response, to_fields
from k8sdatapath.model import flow_enums
from k8sdatapath.model.agent_event import (
    AgentEvent,
    AgentEventType,
    EndpointUpdate,
    IpcacheUpdate,
    PolicyUpdate,
    TimeNotification,
)
from k8sdatapath.model.flow import Flow, FlowEvent, LostEvent, LostEventSource
from k8sdatapath.model.flow_enums import MonitorEvent, PolicyMatch, TCPFlags
from k8sdatapath.model.flow_filter import EventTypeFilter, FlowFilter
from k8sdatapath.model.message import Message
from tests.api.descriptors import compiled
from tests.support import hubble_client
from tests.support.flows import CASES, FULL, RESOLVED

FIRST_FILTERS = [FlowFilter.from_dict({field: hits}) for field, (hits, _) in CASES.items() if hits]


def described(descriptor: Any) -> dict[str, Any]:
    """A message as the table tells it."""
    found = {}
    for field in descriptor.fields:
        kind = field.message_type or field.enum_type
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
        union = field.containing_oneof.name if field.containing_oneof else None
        found[field.name] = (field.number, field.type, kind and kind.full_name, repeated, union)
    return found


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name, _ in hubble_client.table()])
def test_the_schema_is_hubbles(kind: str, name: str) -> None:
    theirs = hubble_client.pool()
    if kind == "enum":
        ours, other = wire.enum(name), theirs.FindEnumTypeByName(name)
        assert {each.name: each.number for each in ours.values} == {
            each.name: each.number for each in other.values
        }
    else:
        assert described(wire.message(name).DESCRIPTOR) == described(theirs.FindMessageTypeByName(name))


@pytest.mark.parametrize("kind", [each for each in vars(flow_enums).values() if isinstance(each, EnumType)])
def test_our_enums_have_its_names_and_numbers(kind: Any) -> None:
    homes = {"TunnelProtocol": "flow.Tunnel.Protocol", "NodeState": "relay.NodeState"}
    if kind not in (IntEnum, IntFlag, TCPFlags, MonitorEvent, PolicyMatch):  # no enums of the schema
        theirs = wire.enum(homes.get(kind.__name__, f"flow.{kind.__name__}"))
        assert {each.name: each.value for each in kind} == {each.name: each.number for each in theirs.values}


def test_what_is_shipped_is_what_the_schema_compiles_to() -> None:
    """Else: python -m tests.api.descriptors > k8sdatapath/hubble/descriptors.binpb"""
    assert wire.descriptor_set() == compiled()


VALUES: list[tuple[str, Message]] = [
    ("flow.Flow", FULL),
    ("flow.Flow", RESOLVED),
    ("flow.Flow", Flow()),
    ("flow.Flow", Flow(is_reply=False, verdict=99)),
    ("flow.LostEvent", LostEvent(LostEventSource.HUBBLE_RING_BUFFER, 2**64 - 1, 0, 1, 2 * 10**18)),
    ("flow.LostEvent", LostEvent(LostEventSource.PERF_EVENT_RING_BUFFER, 1)),
    ("flow.FlowFilter", FlowFilter(event_type=(EventTypeFilter(), EventTypeFilter(1, True, 133)))),
    *(("flow.FlowFilter", each) for each in FIRST_FILTERS),
    ("flow.AgentEvent", AgentEvent(AgentEventType.AGENT_STARTED, TimeNotification(10**18))),
    ("flow.AgentEvent", AgentEvent(AgentEventType.POLICY_UPDATED, PolicyUpdate(("a",), 3, 2**40))),
    ("flow.AgentEvent", AgentEvent(AgentEventType.ENDPOINT_CREATED, EndpointUpdate(1, ("a",), "", "p", "n"))),
    ("flow.AgentEvent", AgentEvent(AgentEventType.IPCACHE_UPSERTED, IpcacheUpdate("::/0", 1, 0))),
]


@pytest.mark.parametrize(("name", "value"), VALUES, ids=range(len(VALUES)))
def test_json_is_what_protocol_buffers_make_of_the_message(name: str, value: Message) -> None:
    ours = wire.message(name)(**to_fields(value))
    theirs = hubble_client.message(name).FromString(ours.SerializeToString())
    assert json.loads(value.to_json()) == json.loads(
        json_format.MessageToJson(theirs, preserving_proto_field_name=True)
    )
    assert from_proto(ours, type(value)) == value
    read = json_format.Parse(value.to_json(), hubble_client.message(name)())
    assert read == theirs
    assert type(value).from_json(value.to_json()) == value


@pytest.mark.parametrize("item", [FULL, LostEvent(LostEventSource.OBSERVER_EVENTS_QUEUE, 4, 1, 2, 3)])
def test_a_line_is_an_answer_of_the_server(item: Flow | LostEvent) -> None:
    answer = response(item, "default/here")
    event = FlowEvent.of(item) if isinstance(item, Flow) else FlowEvent(item, "default/here", item.last)
    assert json.loads(event.to_json()) == json.loads(
        json_format.MessageToJson(answer, preserving_proto_field_name=True)
    )


#: What the command line of Hubble asks for unless it is told otherwise.
STOCK = (
    "time verdict ethernet IP l4 source.identity source.namespace source.pod_name destination.identity "
    "destination.namespace destination.pod_name Type node_name l7 event_type source_service "
    "destination_service is_reply Summary ip_trace_id"
)
MASKS = [
    STOCK.split(),
    ["time", "verdict"],
    ["source.identity", "source.pod_name", "destination.namespace", "l4.TCP.flags", "IP"],
    ["source", "source.identity"],
    ["source.identity", "source"],
    ["l7.http.url", "is_reply", "drop_reason", "reply", "Summary", "event_type.sub_type"],
]


@pytest.mark.parametrize("paths", MASKS, ids=range(len(MASKS)))
def test_masks_leave_what_they_name(paths: list[str]) -> None:
    from google.protobuf import field_mask_pb2

    whole, masked = (hubble_client.message("flow.Flow")() for _ in range(2))
    whole.ParseFromString(response(FULL, "").flow.SerializeToString())
    field_mask_pb2.FieldMask(paths=paths).MergeMessage(whole, masked)
    assert response(FULL, "", field_mask(paths)).flow.SerializeToString() == masked.SerializeToString()


@pytest.mark.parametrize(
    "path", ["", "nope", "time.nope", "source.labels.x", "source..id", "a" * 100_000, "IP." * 50]
)
def test_masks_that_lead_nowhere_are_refused(path: str) -> None:
    with pytest.raises(ModelError, match=r"field_mask: .* leads nowhere in a flow"):
        field_mask(["time", path])
