"""Labels and identities as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sdatapath.errors import ModelError
from k8sdatapath.model.identity import (
    CLUSTER_NUMBERS,
    LOCAL_NUMBERS,
    WELL_KNOWN_NUMBERS,
    Identity,
    Reserved,
    cidr_labels,
    well_known,
)
from k8sdatapath.model.labels import Label, LabelFilter, Labels, pod_labels

KEYS = st.text("abz./-_:9", min_size=1, max_size=6)
VALUES = st.text("abz=.:9", max_size=4)
SETS = st.dictionaries(st.tuples(st.sampled_from(["k8s", "cidr", "fqdn"]), KEYS), VALUES, max_size=4)


def made(values: dict[tuple[str, str], str]) -> Labels:
    return Labels(Label(key, value, source=source) for (source, key), value in values.items())


@given(SETS, SETS)
def test_one_text_and_hash_for_each_set(
    one: dict[tuple[str, str], str], other: dict[tuple[str, str], str]
) -> None:
    first, second = made(one), made(other)
    assert (first == second) == (first.text == second.text) == (first.hash == second.hash) == (one == other)
    assert Labels.parse(first.text) == first
    assert made(dict(reversed(one.items()))).text == first.text


def test_the_canonical_text_is_written_down() -> None:
    """Nodes of several versions share a store: this never changes."""
    labels = pod_labels(
        {"app": "web", "pod-template-hash": "5d4f", "tier": ""},
        namespace="shop",
        namespace_labels={"kubernetes.io/metadata.name": "shop"},
        service_account="front",
    )
    assert labels.text == (
        "k8s:app=web;"
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;"
        "k8s:io.cilium.k8s.policy.cluster=default;"
        "k8s:io.cilium.k8s.policy.serviceaccount=front;"
        "k8s:io.kubernetes.pod.namespace=shop;"
        "k8s:tier=;"
    )
    assert labels.hash == "k6vsz5rnxqpox5tp4yc2ex7w3jaovkyx257zdst7kstxtlsud55q"
    assert labels.get("app") == labels.get("app", "k8s") == "web"
    assert labels.get("app", "container") is None
    assert Label("tier") in labels


def test_a_pod_does_not_choose_its_namespace_or_account() -> None:
    spoofed = {
        "io.kubernetes.pod.namespace": "kube-system",
        "io.cilium.k8s.policy.serviceaccount": "admin",
        "io.cilium.k8s.namespace.labels.trusted": "yes",
    }
    assert pod_labels(spoofed, namespace="shop") == pod_labels({}, namespace="shop")


def test_filters() -> None:
    def kept(filter: LabelFilter) -> set[str]:
        labels = {"app": "a", "app.kubernetes.io/name": "b", "team": "c", "controller-uid": "d"}
        return {each.key for each in pod_labels(labels, namespace="n", filter=filter)} & labels.keys()

    assert kept(LabelFilter()) == {"app", "app.kubernetes.io/name", "team"}
    assert kept(LabelFilter(exclude=())) == {"app", "app.kubernetes.io/name", "team", "controller-uid"}
    assert kept(LabelFilter(include=["app"])) == {"app", "app.kubernetes.io/name"}
    assert kept(LabelFilter(include=["app"], exclude=["app.kubernetes"])) == {"app"}
    assert kept(LabelFilter(include=["app"], exclude=["app"])) == set()
    assert kept(LabelFilter(include=["nothing"])) == set()
    assert pod_labels({}, namespace="n", filter=LabelFilter(exclude=[""])).get("io.kubernetes.pod.namespace")
    with pytest.raises(ModelError, match="pattern"):
        LabelFilter(include=["("])


@pytest.mark.parametrize(
    "text", ["", "=x", "K8S:a=b", "k8s:a b=c", "k8s:a=b;c", "k8s:a=\n", "k8s:=b", ":a=b"]
)
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(ModelError, match="of a label"):
        Label.parse(text)


def test_what_is_no_set_of_labels() -> None:
    with pytest.raises(ModelError, match="two values"):
        Labels(["k8s:a=1", "a=2"])
    with pytest.raises(ModelError, match="single"):
        Labels("k8s:a=1")
    with pytest.raises(ModelError, match="canonical"):
        Labels.parse("k8s:b=1;k8s:a=1;")
    with pytest.raises(ModelError, match="not a label"):
        Labels([1])  # type: ignore[list-item]
    with pytest.raises(ModelError, match=r"labels of a pod are a mapping, not \['app=web'\]"):
        pod_labels(["app=web"], namespace="shop")


def test_reserved_numbers_are_those_of_cilium() -> None:
    assert {each.name: each.value for each in Reserved} == {
        "UNKNOWN": 0,
        "HOST": 1,
        "WORLD": 2,
        "UNMANAGED": 3,
        "HEALTH": 4,
        "INIT": 5,
        "REMOTE_NODE": 6,
        "KUBE_APISERVER": 7,
        "INGRESS": 8,
        "WORLD_IPV4": 9,
        "WORLD_IPV6": 10,
    }
    assert str(Identity.reserved("remote-node")) == "6 (reserved:remote-node=)"
    assert Identity.reserved(2) == Identity.reserved(Reserved.WORLD)
    with pytest.raises(ModelError, match="reserved identity"):
        Identity.reserved("nowhere")


def test_numbers() -> None:
    labels = Labels(["app=web"])
    assert not Identity(CLUSTER_NUMBERS[-1], labels).local
    assert Identity(LOCAL_NUMBERS[0], labels).local
    assert LOCAL_NUMBERS[0] == 1 << 24 | 1
    for number in -1, 1 << 26, True, "300":
        with pytest.raises(ModelError, match="number of an identity"):
            Identity(number, labels)  # type: ignore[arg-type]


def test_networks_are_of_the_world_of_their_family() -> None:
    assert str(cidr_labels("10.0.0.0/8")) == "cidr:10.0.0.0/8= reserved:world= reserved:world-ipv4="
    assert cidr_labels("fd00::/8").get("fd00::/8", "cidr") == ""
    assert "reserved:world-ipv6=;" in cidr_labels("fd00::/8").text


def test_well_known_ones_have_numbers_of_their_own() -> None:
    known = well_known("east")
    assert set(known.values()) == {102, 104} <= set(WELL_KNOWN_NUMBERS)
    assert all(labels.get("io.cilium.k8s.policy.cluster") == "east" for labels in known)
