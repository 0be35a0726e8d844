"""A watch tells what an API server has, whatever happens to the server or on the way to it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from attrs import evolve

from k8sdatapath.errors import SourceError
from k8sdatapath.kube.events import in_asyncio
from k8sdatapath.kube.objects import KubeNode, KubePod, KubeRaw, KubeService
from k8sdatapath.kube.resources import Resource
from k8sdatapath.kube.watch import KubeWatch
from tests.support.api_double import ApiDouble
from tests.support.api_requests import Query, Refusal
from tests.support.watching import HASTY, Listener, Watch, client, follow, part, ports_of, service, wait


class TestCalm:
    def test_what_there_is_then_what_changes(self, double: ApiDouble, watch: Watch) -> None:
        double.put("services", service("web"))
        listener = follow(watch("services", "endpointslices", "nodes"))
        assert listener.ports() == {"web": 80}
        double.put("services", service("web", 81))
        double.put("endpointslices", part("web", "10.244.1.2"))
        double.put("nodes", {"metadata": {"name": "n1"}, "status": {}})
        listener.until(lambda: listener.ports() == {"web": 81} and len(listener.objects) == 3)
        assert listener.endpoints() == {"web-1": {"10.244.1.2"}}
        assert listener.objects["Node", "", "n1"] == KubeNode("n1")
        double.delete("services", "default", "web")
        listener.until(lambda: listener.ports() == {})

    def test_pages(self, double: ApiDouble, watch: Watch) -> None:
        for number in range(7):
            double.put("services", service(f"s{number}", number=number + 1))
        listener = follow(watch(page_size=3))
        assert listener.ports() == ports_of(double)
        assert [each.options.get("limit") for each in double.requests if not each.watch] == ["3"] * 3

    def test_synced_only_when_all_is_listed(self, double: ApiDouble, watch: Watch) -> None:
        double.put("services", service("web"))
        broken = threading.Event()

        def refuse(query: Query) -> None:
            if query.plural == "endpointslices" and not broken.is_set():
                raise Refusal(500, "InternalError")

        double.refuse = refuse
        source = watch("services", "endpointslices")
        listener = Listener(source)
        listener.until(lambda: source.status["endpointslices"].errors > 1 and listener.ports())
        assert listener.ports() == {"web": 80}
        assert not listener.synced
        assert "500" in source.status["endpointslices"].error
        assert "not synced" in repr(source)
        broken.set()
        listener.until(lambda: listener.synced)
        listener.until(lambda: source.status["endpointslices"].error == "")

    def test_a_batch_is_empty_after_the_timeout(self, watch: Watch) -> None:
        batches = watch().batches(timeout=0.05)
        while not next(batches).synced:
            pass
        assert next(batches).events == ()

    def test_of_an_object_the_latest_event_is_kept(self, double: ApiDouble, watch: Watch) -> None:
        source = watch()
        listener = follow(source)
        for port in range(1, 201):
            double.put("services", service("web", port))
        wait(lambda: source.status["services"].events == 200)
        assert len(listener.take().events) == 1
        assert listener.ports() == {"web": 200}

    def test_bookmarks_move_the_watch_on(self, double: ApiDouble, watch: Watch) -> None:
        source = watch("services", "nodes")
        listener = follow(source)
        bookmarks: list[bytes] = []

        def look(line: bytes) -> list[bytes]:
            if b'"BOOKMARK"' in line and b'"Service"' in line:
                bookmarks.append(line)
            return [line]

        def hear() -> None:
            before = source.status["services"].heard
            listener.until(lambda: source.status["services"].heard > before)

        double.spoil = look
        for number in range(20):  # of another resource
            last = double.put("nodes", {"metadata": {"name": f"n{number}"}, "status": {}})
        version = last["metadata"]["resourceVersion"].encode()
        listener.until(lambda: len(listener.objects) == 20 and any(version in each for each in bookmarks))
        hear()
        hear()  # the first may be of a line before
        double.compact()
        double.cut()
        double.put("services", service("web"))
        listener.until(lambda: listener.ports() == {"web": 80})
        assert source.status["services"].lists == 1

    def test_what_others_serve_is_not_told(self, double: ApiDouble, watch: Watch) -> None:
        headless, proxy = "service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name"
        double.put("services", service("a", **{headless: ""}))
        double.put("services", service("b", **{proxy: "other"}))
        double.put("services", service("c"))
        listener = follow(watch())
        assert listener.ports() == {"c": 80}
        double.put("services", service("b"))
        double.put("services", service("c", **{proxy: "other"}))
        listener.until(lambda: listener.ports() == {"b": 80})

    def test_pods_of_one_node(self, double: ApiDouble, watch: Watch) -> None:
        def pod(name: str, node: str, port: int) -> dict[str, Any]:
            ports = [{"containerPort": 80, "hostPort": port}] if port else []
            return {
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"nodeName": node, "containers": [{"ports": ports}]},
                "status": {"podIP": "10.244.1.2", "phase": "Running" if port else "Succeeded"},
            }

        for each in ("here", "n1", 8080), ("there", "n2", 8080), ("over", "n1", 0):
            double.put("pods", pod(*each))
        listener = follow(watch("pods", node="n1"))
        # of one that is over there is nothing to tell
        assert listener.told() == ["+Pod here"]
        assert isinstance(listener.objects["Pod", "default", "here"], KubePod)
        double.put("pods", pod("here", "n1", 0))
        listener.until(lambda: listener.told() == ["+Pod here", "-Pod here"])

    def test_other_resources_as_they_are(self, double: ApiDouble, watch: Watch) -> None:
        double.put("namespaces", {"metadata": {"name": "shop", "labels": {"team": "a"}}})
        double.put("things", {"metadata": {"name": "x", "namespace": "shop"}, "spec": {"any": [1]}})
        listener = follow(
            watch("namespaces", "networkpolicies", Resource("example.com/v1", "Thing", "things"))
        )
        namespace = listener.objects["Namespace", "", "shop"]
        thing = listener.objects["Thing", "shop", "x"]
        assert isinstance(namespace, KubeRaw)
        assert isinstance(thing, KubeRaw)
        assert namespace.value["metadata"]["labels"] == {"team": "a"}
        assert thing.value["spec"] == {"any": [1]}

    def test_a_wrong_object_is_told_as_an_error(self, double: ApiDouble, watch: Watch) -> None:
        double.put("services", service("good"))
        double.put("services", service("bad", port=70000))
        listener = follow(watch())
        assert listener.ports() == {"good": 80}
        [error] = [each.error for each in listener.events if each.error]
        assert str(error) == (
            f"{double.url} (Service default/bad): spec.ports[0].port: 70000 is not a port (1 to 65535)"
        )
        double.put("services", service("bad", port=81))
        listener.until(lambda: listener.ports() == {"good": 80, "bad": 81})
        double.put("services", service("bad", port=-1))
        listener.until(lambda: listener.events[-1].error is not None)
        assert listener.ports() == {"good": 80, "bad": 81}  # what was last known holds

    def test_a_wrong_object_is_not_taken_for_one_of_its_name_that_has_gone(
        self, double: ApiDouble, watch: Watch
    ) -> None:
        """Also for a listener so slow that both have happened when it looks again."""
        double.put("services", service("web"))
        source = watch()
        listener = follow(source)
        known = source.status["services"].events
        double.delete("services", "default", "web")
        double.put("services", service("web", port=70000))
        wait(lambda: source.status["services"].events == known + 2)
        listener.until(lambda: listener.events[-1].error is not None)
        assert listener.ports() == {}
        double.put("services", service("web", port=81))
        listener.until(lambda: listener.ports() == {"web": 81})

    @pytest.mark.parametrize(
        ("resources", "said"),
        [
            (("service",), "no resource 'service': did you mean 'services'?"),
            ((), "resources to watch: none: at least one, each kind once"),
            (("nodes", "nodes"), "resources to watch: Node, Node: at least one, each kind once"),
        ],
    )
    def test_resources_must_be_known(self, double: ApiDouble, resources: tuple[str, ...], said: str) -> None:
        with pytest.raises(SourceError) as caught:
            KubeWatch(client(double), resources)
        assert str(caught.value) == said

    def test_from_asyncio(self, double: ApiDouble, watch: Watch) -> None:
        double.put("services", service("web"))

        async def names(source: KubeWatch) -> list[str]:
            found = []
            async for batch in in_asyncio(source):
                found += [each.name for each in batch.events]
                if len(found) == 2:
                    break
                if batch.synced and found:
                    double.put("services", service("shop", number=2))
            return found

        assert asyncio.run(asyncio.wait_for(names(watch()), 10)) == ["web", "shop"]

    def test_cancelled_in_asyncio(self, watch: Watch) -> None:
        async def forever(source: KubeWatch) -> None:
            async for _ in in_asyncio(source):
                pass

        async def main() -> None:
            task = asyncio.create_task(forever(watch()))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        start = time.monotonic()
        asyncio.run(main())
        assert time.monotonic() - start < 2


class TestGaps:
    """Connections end, and things happen meanwhile."""

    def test_a_cut_watch_resumes_where_it_was(self, double: ApiDouble, watch: Watch) -> None:
        double.put("services", service("web"))
        source = watch()
        listener = follow(source)
        listener.forget()
        for port in range(81, 84):
            assert double.cut()
            double.put("services", service("web", port))
            listener.until(lambda port=port: listener.ports() == {"web": port})  # type: ignore[misc]
        assert listener.told() == ["+Service web"] * 3
        assert source.status["services"].lists == 1

    @pytest.mark.parametrize("as_event", [True, False], ids=["event", "http"])
    def test_after_410_only_the_difference_is_told(
        self, double: ApiDouble, watch: Watch, as_event: bool
    ) -> None:
        double.gone_as_event = as_event
        for number in range(6):
            double.put("services", service(f"s{number}", number=number + 1))
        source = watch(page_size=2)
        listener = follow(source)
        double.down()
        listener.quiet()
        double.put("services", service("s0", 8080))
        double.put("services", service("s1", 81), recreate=True)
        double.delete("services", "default", "s2")
        double.put("services", service("new", number=9))
        double.compact()
        listener.forget()
        double.up()
        listener.until(lambda: listener.ports() == ports_of(double))
        assert sorted(listener.told()) == ["+Service new", "+Service s0", "+Service s1", "-Service s2"]
        assert listener.told()[-1] == "-Service s2"  # not before the list was complete
        assert source.status["services"].lists == 2
        listener.quiet()

    def test_nothing_is_gone_because_a_list_failed(self, double: ApiDouble, watch: Watch) -> None:
        for number in range(6):
            double.put("services", service(f"s{number}", number=number + 1))
        source = watch(page_size=2)
        listener = follow(source)
        listener.forget()
        failing = threading.Event()

        def refuse(query: Query) -> None:
            if not query.watch and "continue" in query.options and not failing.is_set():
                raise Refusal(500, "InternalError")

        double.refuse = refuse
        double.delete("services", "default", "s5")
        double.compact()
        double.cut()
        listener.until(lambda: source.status["services"].errors > 3)
        assert set(listener.told()) <= {"-Service s5"}  # the watch may have told it before the cut
        failing.set()
        listener.until(lambda: listener.ports() == ports_of(double))
        assert listener.told() == ["-Service s5"]

    def test_410_while_pages_are_turned(self, double: ApiDouble, watch: Watch) -> None:
        for number in range(6):
            double.put("services", service(f"s{number}", number=number + 1))

        def refuse(query: Query) -> None:
            if query.options.get("continue"):
                double.delete("services", "default", "s0")  # it has been told already
                double.refuse = lambda query: None
                double.compact()

        double.refuse = refuse
        listener = follow(watch(page_size=2))
        assert listener.ports() == ports_of(double)
        assert listener.told()[-1] == "-Service s0"

    def test_recreated_under_the_same_name(self, double: ApiDouble, watch: Watch) -> None:
        double.put("services", service("web"))
        listener = follow(watch())
        double.put("services", service("web", 81), recreate=True)
        listener.until(lambda: listener.ports() == {"web": 81})
        listener.quiet()
        assert listener.ports() == {"web": 81}

    def test_a_restored_backup_is_another_history(self, double: ApiDouble, watch: Watch) -> None:
        first = double.put("services", service("web"))
        double.put("services", service("shop", number=2))
        source = watch()
        listener = follow(source)
        double.delete("services", "default", "shop")
        listener.until(lambda: listener.ports() == {"web": 80})
        number = int(first["metadata"]["resourceVersion"])
        double.restore(number - 1)  # so that the version of the object is what it was
        with double._changed:
            double._objects["services"]["default", "web"]["spec"]["ports"] = [{"port": 99}]
        assert double.objects("services")["default", "web"]["metadata"]["resourceVersion"] == str(number)
        listener.until(lambda: listener.ports() == {"web": 99})

    def test_a_half_open_connection_is_left(self, double: ApiDouble, watch: Watch) -> None:
        source = watch(patience=evolve(HASTY, watch=0.5, silence=0.5))
        listener = follow(source)
        double.stall()
        double.put("services", service("web"))
        listener.until(lambda: source.status["services"].errors)
        assert "timed out" in source.status["services"].error
        double.stall(False)
        listener.until(lambda: listener.ports() == {"web": 80})
        assert source.status["services"].lists == 1

    def test_a_watch_that_ends_as_meant_is_opened_at_once(self, double: ApiDouble, watch: Watch) -> None:
        source = watch(patience=evolve(HASTY, watch=0.5, steady=0.2, first=5.0, most=5.0))
        listener = follow(source)
        listener.until(lambda: source.status["services"].watches >= 3, 6)
        assert source.status["services"].errors == 0


class TestSpoiled:
    """What comes is not what a server should send."""

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\xff\xfe\n",
            b"not JSON\n",
            b'{"type":"ADDED"}\n',
            b'{"type":"?","object":{}}\n',
            b"[" * 9999 + b"\n",
        ],
        ids=["bytes", "text", "no object", "no type", "deep"],
    )
    def test_garbage_is_counted_and_survived(self, double: ApiDouble, watch: Watch, garbage: bytes) -> None:
        source = watch()
        listener = follow(source)
        double.spoil = lambda line: [garbage] if b'"web"' in line else [line]
        double.put("services", service("web"))  # this event is lost
        listener.until(lambda: listener.ports() == {"web": 80})  # and seen by a list all the same
        assert source.status["services"].garbled
        double.spoil = lambda line: [line]
        double.put("services", service("web", 81))
        listener.until(lambda: listener.ports() == {"web": 81})

    def test_a_line_that_is_cut_in_two_by_a_reset(self, double: ApiDouble, watch: Watch) -> None:
        source = watch()
        listener = follow(source)

        def spoil(line: bytes) -> list[bytes]:
            if b'"web"' not in line:
                return [line]
            double.spoil = lambda line: [line]
            double.cut()
            return [line[:40]]

        double.spoil = spoil
        double.put("services", service("web"))
        listener.until(lambda: listener.ports() == {"web": 80})
        assert source.status["services"].lists == 1

    def test_lines_may_come_in_pieces_or_together(self, double: ApiDouble, watch: Watch) -> None:
        listener = follow(watch())
        kept: list[bytes] = []

        def together(line: bytes) -> list[bytes]:
            kept.append(line)
            if len(kept) < 6:
                return []
            whole = b"".join(kept)
            kept.clear()
            return [whole[:100], whole[100:300], whole[300:]]

        double.bookmarks = 60
        double.spoil = together
        for number in range(6):
            double.put("services", service(f"s{number}", number=number + 1))
        listener.until(lambda: len(listener.ports()) == 6)

    def test_what_is_told_twice_is_passed_on_once(self, double: ApiDouble, watch: Watch) -> None:
        double.spoil = lambda line: [line, line]
        source = watch()
        listener = follow(source)
        double.put("services", service("web"))
        double.put("services", service("web", 81))
        double.delete("services", "default", "web")
        double.put("services", service("shop"))
        listener.until(lambda: listener.ports() == {"shop": 80})
        wait(lambda: source.status["services"].events == 4)
        assert source.status["services"].lists == 1

    def test_old_events_do_not_bring_back_what_has_gone(self, double: ApiDouble, watch: Watch) -> None:
        source = watch()
        listener = follow(source)
        double.put("services", service("web"))
        listener.until(lambda: listener.ports())
        seen: list[bytes] = []

        def again(line: bytes) -> list[bytes]:
            seen.append(line)
            return [line, seen[0]]

        double.spoil = again
        double.put("services", service("web", 81))
        double.delete("services", "default", "web")
        listener.until(lambda: source.status["services"].lists > 1)
        double.spoil = lambda line: [line]
        listener.until(lambda: listener.ports() == {})
        double.put("services", service("shop"))
        listener.until(lambda: listener.ports() == {"shop": 80})

    def test_a_line_without_an_end_does_not_fill_memory(
        self, double: ApiDouble, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("k8sdatapath.kube.connection._MAX_LINE", 1 << 16)
        source = watch()
        listener = follow(source)
        double.spoil = lambda line: [b"x" * (1 << 15)] * 4
        double.put("services", service("web"))
        listener.until(lambda: "a line of more than" in source.status["services"].error)
        double.spoil = lambda line: [line]
        listener.until(lambda: listener.ports() == {"web": 80})

    def test_a_list_that_is_none(
        self, double: ApiDouble, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        double.put("services", service("web"))
        answers: list[Any] = [[], "text", {"items": 1, "metadata": {}}, {"metadata": {}, "items": []}]
        real = double.answer_list
        monkeypatch.setattr(double, "answer_list", lambda query: answers.pop() if answers else real(query))
        source = watch()
        listener = follow(source)
        assert listener.ports() == {"web": 80}
        assert source.status["services"].garbled == 4

    def test_a_nameless_object_in_a_list_hides_no_other(
        self, double: ApiDouble, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        double.put("services", service("web"))
        double.put("services", service("shop", number=2))
        source = watch()
        listener = follow(source)
        real = double.answer_list

        def spoiled(query: Query) -> Any:
            whole = real(query)
            del whole["items"][0]["metadata"]
            return whole

        monkeypatch.setattr(double, "answer_list", spoiled)
        double.down()
        double.put("nodes", {"metadata": {"name": "n1"}})
        double.compact()
        double.up()
        listener.until(lambda: source.status["services"].lists == 2 and source.status["services"].connected)
        assert listener.ports() == {"web": 80, "shop": 80}  # it may be either
        assert source.status["services"].garbled == 1


def test_an_object_may_be_of_a_service_of_the_same_name_elsewhere(double: ApiDouble, watch: Watch) -> None:
    double.put("services", service("web", namespace="a"))
    double.put("services", service("web", 81, namespace="b", number=2))
    listener = follow(watch())
    double.delete("services", "a", "web")
    listener.until(lambda: len(listener.objects) == 1)
    left = listener.objects["Service", "b", "web"]
    assert isinstance(left, KubeService)
    assert left.ports[0].number == 81
