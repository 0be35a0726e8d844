"""Files and directories as a source, read once or watched."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8sdatapath.component import Source
from k8sdatapath.errors import ManifestError, SourceError
from k8sdatapath.kube import StaticYaml
from k8sdatapath.model import Service

EXAMPLES = Path(__file__).parents[2] / "examples/manifests"


def service(name: str, ip: str, port: int = 80) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"clusterIP": ip, "ports": [{"port": port}]},
    }


def text(*objects: object) -> str:
    return "\n---\n".join(map(json.dumps, objects))


def put(path: Path, *objects: object) -> None:
    """Write a file at one stroke, so that no test depends on how fast it is written."""
    unseen = path.with_name(f".{path.name}.new")
    unseen.write_text(text(*objects))
    unseen.replace(path)


def names(services: tuple[Service, ...]) -> list[str]:
    return [service.name for service in services]


class TestRead:
    def test_the_examples_are_what_the_demo_runs(self):
        source: Source[Service] = StaticYaml(EXAMPLES)
        found = {str(service.frontend): service for service in source.read()}
        assert sorted(found) == [
            "10.96.0.10:80/TCP",
            "10.96.0.53:53/UDP",
            "[fd00:10:96::10]:80/TCP",
            "[fd00:10:96::53]:53/UDP",
        ]
        assert [str(backend) for backend in found["10.96.0.10:80/TCP"].backends] == [
            "10.244.1.3:8080",
            "10.244.1.4:8080",
            "10.244.1.5:8080",
        ]

    def test_directory_means_its_visible_manifests(self, tmp_path: Path):
        put(tmp_path / "b.yaml", service("b", "10.96.0.2"))
        put(tmp_path / "a.yml", service("a", "10.96.0.1"))
        put(tmp_path / "c.json", service("c", "10.96.0.3"))
        put(tmp_path / ".hidden.yaml", service("hidden", "10.96.0.4"))
        (tmp_path / "README.md").write_text("kind: [")
        (tmp_path / "inner.yaml").mkdir()
        put(tmp_path / "inner.yaml" / "d.yaml", service("d", "10.96.0.5"))
        assert names(StaticYaml(tmp_path).read()) == ["default/a", "default/b", "default/c"]

    def test_a_file_named_twice_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        put(tmp_path / "a.yaml", service("a", "10.96.0.1"))
        monkeypatch.chdir(tmp_path)
        assert names(StaticYaml("a.yaml", tmp_path, tmp_path / "a.yaml").read()) == ["default/a"]

    def test_any_name_will_do_for_a_file_that_is_named(self, tmp_path: Path):
        put(tmp_path / ".manifest", service("a", "10.96.0.1"))
        assert names(StaticYaml(tmp_path / ".manifest").read()) == ["default/a"]

    @pytest.mark.parametrize("text", ["", "\n", "---\n---\n", "# nothing yet\n", "\ufeff"])
    def test_nothing_in_a_file_is_nothing_wanted(self, tmp_path: Path, text: str):
        (tmp_path / "a.yaml").write_text(text)
        assert StaticYaml(tmp_path).read() == ()

    def test_an_empty_directory_is_nothing_wanted(self, tmp_path: Path):
        assert StaticYaml(tmp_path).read() == ()

    def test_a_byte_order_mark_is_not_content(self, tmp_path: Path):
        (tmp_path / "a.yaml").write_text(json.dumps(service("a", "10.96.0.1")), encoding="utf-8-sig")
        assert names(StaticYaml(tmp_path).read()) == ["default/a"]

    def test_lists_as_kubectl_prints_them(self, tmp_path: Path):
        one, two, three = (service(name, f"10.96.0.{n}") for n, name in enumerate("abc", 1))
        bare = {key: two[key] for key in ("metadata", "spec")}
        put(
            tmp_path / "a.yaml",
            {"apiVersion": "v1", "kind": "List", "items": [one, {"apiVersion": "v1", "kind": "Pod"}]},
            {
                "apiVersion": "v1",
                "kind": "ServiceList",
                "metadata": {"resourceVersion": "1"},
                "items": [bare],
            },
            {
                "apiVersion": "v1",
                "kind": "List",
                "items": [{"apiVersion": "v1", "kind": "List", "items": [three]}],
            },
        )
        assert names(StaticYaml(tmp_path).read()) == ["default/a", "default/b", "default/c"]

    def test_what_is_passed_over_is_counted(self, tmp_path: Path):
        put(
            tmp_path / "a.yaml",
            {"apiVersion": "apps/v1", "kind": "Deployment", "spec": 5},
            {"apiVersion": "apps/v1", "kind": "Deployment"},
            {"apiVersion": "serving.knative.dev/v1", "kind": "Service"},
            {"apiVersion": "discovery.k8s.io/v1beta1", "kind": "EndpointSlice"},
            service("a", "None"),
            service("b", "10.96.0.1"),
        )
        source = StaticYaml(tmp_path)
        source.read()
        assert source.ignored == {
            "Deployment": 2,
            "EndpointSlice of discovery.k8s.io/v1beta1": 1,
            "Service": 1,
            "Service without a cluster IP": 1,
        }

    def test_reading_again_sees_what_is_new(self, tmp_path: Path):
        source = StaticYaml(tmp_path)
        for last in range(1, 6):  # as fast as it goes: time stamps alone would not tell
            (tmp_path / "a.yaml").write_text(text(service("a", f"10.96.0.{last}")))
            assert str(source.read()[0].address) == f"10.96.0.{last}"

    @pytest.mark.parametrize("name", ["absent", "absent/a.yaml", "nul\0l.yaml"])
    def test_what_is_not_there_is_a_source_error(self, tmp_path: Path, name: str):
        with pytest.raises(SourceError) as caught:
            StaticYaml(tmp_path / name).read()
        assert not isinstance(caught.value, ManifestError)

    def test_what_is_no_file_is_a_source_error(self, tmp_path: Path):
        os.mkfifo(tmp_path / "pipe.yaml")
        with pytest.raises(SourceError, match=r"pipe\.yaml: neither a file nor a directory"):
            StaticYaml(tmp_path).read()

    def test_a_dangling_link_is_a_source_error(self, tmp_path: Path):
        (tmp_path / "a.yaml").symlink_to("gone")
        with pytest.raises(SourceError, match=r"a\.yaml: No such file"):
            StaticYaml(tmp_path).read()

    def test_what_has_not_changed_is_not_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        put(tmp_path / "a.yaml", service("a", "10.96.0.1"))
        now = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: now + 10_000_000_000)  # long enough to trust time stamps
        source = StaticYaml(tmp_path)
        first = source.read()
        monkeypatch.setattr(Path, "open", lambda *args: pytest.fail("the file was opened again"))
        assert source.read() == first

    def test_says_where_it_reads(self):
        assert repr(StaticYaml("a.yaml", "more/")) == "<StaticYaml a.yaml more>"

    def test_no_path_at_all_is_refused(self):
        with pytest.raises(SourceError, match="at least one"):
            StaticYaml()


class Watching:
    """A watch, run in a thread, whose yields and errors are awaited."""

    def __init__(self, source: StaticYaml) -> None:
        self.stop = threading.Event()
        self._news: list[tuple[str, object]] = []
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(source,))
        self._thread.start()

    def _run(self, source: StaticYaml) -> None:
        def told(error: SourceError) -> None:
            self._tell("error", str(error))

        for services in source.watch(0.01, self.stop, told):
            self._tell("services", [f"{service.name} {service.frontend}" for service in services])

    def _tell(self, what: str, value: object) -> None:
        with self._more:
            self._news.append((what, value))
            self._more.notify()

    def next(self, timeout: float = 30) -> tuple[str, object]:
        with self._more:
            assert self._more.wait_for(lambda: self._news, timeout), "nothing was yielded"
            return self._news.pop(0)

    def quiet(self) -> bool:
        with self._more:
            return not self._more.wait_for(lambda: self._news, 0.2)

    def close(self) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    put(tmp_path / "a.yaml", service("a", "10.96.0.1"))
    watching = Watching(StaticYaml(tmp_path))
    assert watching.next() == ("services", ["default/a 10.96.0.1:80/TCP"])
    yield watching
    watching.close()


class TestWatch:
    def test_files_added_edited_and_removed_are_followed(self, tmp_path: Path, watching: Watching):
        put(tmp_path / "b.yaml", service("b", "10.96.0.2"))
        assert watching.next() == ("services", ["default/a 10.96.0.1:80/TCP", "default/b 10.96.0.2:80/TCP"])
        put(tmp_path / "b.yaml", service("b", "10.96.0.2", 81))
        assert watching.next() == ("services", ["default/a 10.96.0.1:80/TCP", "default/b 10.96.0.2:81/TCP"])
        (tmp_path / "a.yaml").unlink()
        assert watching.next() == ("services", ["default/b 10.96.0.2:81/TCP"])
        (tmp_path / "b.yaml").unlink()
        assert watching.next() == ("services", [])

    def test_no_change_is_no_news(self, tmp_path: Path, watching: Watching):
        os.utime(tmp_path / "a.yaml")
        (tmp_path / "notes.txt").write_text("not a manifest")
        assert watching.quiet()

    def test_a_broken_edit_is_told_once_and_survived(self, tmp_path: Path, watching: Watching):
        path = tmp_path / "a.yaml"
        put(path, service("a", "10.96.0.1", 70000))
        what, error = watching.next()
        assert what == "error"
        assert error == (
            f"{path}: document 1 (Service default/a): spec.ports[0].port: 70000 is not a port (1 to 65535)"
        )
        assert watching.quiet()
        put(path, service("a", "10.96.0.1"))
        assert watching.next() == ("services", ["default/a 10.96.0.1:80/TCP"])

    def test_a_directory_that_goes_and_comes_back(self, tmp_path: Path, watching: Watching):
        away = tmp_path.with_name("away")
        tmp_path.rename(away)
        assert watching.next() == ("error", f"{tmp_path}: No such file or directory")
        assert watching.quiet()
        away.rename(tmp_path)
        assert watching.next() == ("services", ["default/a 10.96.0.1:80/TCP"])

    def test_edits_in_quick_succession_all_count(self, tmp_path: Path, watching: Watching):
        for port in range(1, 50):
            (tmp_path / "a.yaml").write_text(text(service("a", "10.96.0.1", port)))
        told = watching.next()
        while told[1] != ["default/a 10.96.0.1:49/TCP"]:
            told = watching.next()
        assert watching.quiet()


def test_a_configmap_mount_is_followed(tmp_path: Path):
    """The kubelet writes a new directory and swaps one link; the files themselves are links through it."""
    for generation, ip in ("..1", "10.96.0.1"), ("..2", "10.96.0.2"):
        (tmp_path / generation).mkdir()
        put(tmp_path / generation / "web.yaml", service("web", ip))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "web.yaml").symlink_to("..data/web.yaml")
    watching = Watching(StaticYaml(tmp_path))
    assert watching.next() == ("services", ["default/web 10.96.0.1:80/TCP"])
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert watching.next() == ("services", ["default/web 10.96.0.2:80/TCP"])
    watching.close()


class TestWatchWithoutThreads:
    def test_the_first_state_comes_at_once(self, tmp_path: Path):
        put(tmp_path / "a.yaml", service("a", "10.96.0.1"))
        assert names(next(StaticYaml(tmp_path).watch(interval=3600))) == ["default/a"]

    def test_without_on_error_what_is_wrong_is_raised(self, tmp_path: Path):
        (tmp_path / "a.yaml").write_text("kind: [")
        with pytest.raises(ManifestError):
            next(StaticYaml(tmp_path).watch())

    def test_stop_ends_the_iteration(self, tmp_path: Path):
        stop = threading.Event()
        states = []
        for services in StaticYaml(tmp_path).watch(interval=3600, stop=stop):
            states.append(services)
            stop.set()
        assert states == [()]
        assert list(StaticYaml(tmp_path).watch(stop=stop)) == []

    def test_stop_ends_it_also_while_files_change(self, tmp_path: Path):
        path = tmp_path / "a.yaml"

        class Stop(threading.Event):
            """At the first pause a file comes, at the second everything stops."""

            def wait(self, timeout: float | None = None) -> bool:
                if path.exists():
                    self.set()
                put(path, service("a", "10.96.0.1"))
                return self.is_set()

        assert list(StaticYaml(tmp_path).watch(stop=Stop())) == [()]

    def test_a_file_being_written_is_not_taken_half(self, tmp_path: Path):
        whole = text(service("a", "10.96.0.1"), service("b", "10.96.0.2"))
        path = tmp_path / "a.yaml"

        class Writer(threading.Event):
            """Whenever the watch pauses, ten more characters are written."""

            def wait(self, timeout: float | None = None) -> bool:
                path.write_text(whole[: path.stat().st_size + 10] if path.exists() else whole[:10])
                return self.is_set()

        states = StaticYaml(tmp_path).watch(stop=Writer())
        assert names(next(states)) == []
        assert names(next(states)) == ["default/a", "default/b"]

    def test_a_wrong_start_is_told_and_mended(self, tmp_path: Path):
        path = tmp_path / "a.yaml"
        path.write_text("kind: [")
        told: list[SourceError] = []

        def mend(error: SourceError) -> None:
            told.append(error)
            put(path, service("a", "10.96.0.1"))

        assert names(next(StaticYaml(path).watch(0.01, on_error=mend))) == ["default/a"]
        assert len(told) == 1
