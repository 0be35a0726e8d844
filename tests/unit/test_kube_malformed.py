"""What is wrong in a manifest is refused as a whole, and the error names file, object, field and reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from k8sdatapath.errors import ManifestError, SourceError
from k8sdatapath.kube import StaticYaml

MALFORMED = sorted((Path(__file__).parents[1] / "data/manifests/malformed").iterdir())

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
}


def refusal(path: Path, **options: int) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        StaticYaml(path, **options).read()
    assert isinstance(caught.value, SourceError)
    assert isinstance(caught.value, ValueError)
    return caught.value


@pytest.mark.parametrize("path", MALFORMED, ids=lambda path: path.stem)
def test_malformed_file_is_refused_as_its_first_line_says(path: Path):
    said = path.read_text().splitlines()[0].removeprefix("# ").replace("{file}", str(path))
    assert str(refusal(path)) == f"{path}: {said}"


def test_the_parts_of_an_error_can_be_told_apart(tmp_path: Path):
    path = tmp_path / "web.json"
    path.write_text(json.dumps(SERVICE | {"spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 70000}]}}))
    error = refusal(path)
    assert error.where == f"{path}: document 1 (Service default/web)"
    assert error.path == "spec.ports[0].port"
    assert error.reason == "70000 is not a port (1 to 65535)"


def test_one_bad_file_refuses_the_directory(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(SERVICE))
    assert len(StaticYaml(tmp_path).read()) == 1
    (tmp_path / "b.yaml").write_text("kind: [")
    assert str(tmp_path / "b.yaml") in str(refusal(tmp_path))


def test_frontends_and_names_are_unique_across_files(tmp_path: Path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(SERVICE))
    two.write_text(json.dumps(SERVICE | {"metadata": {"name": "zoo"}}))
    error = refusal(tmp_path)
    assert str(error) == (
        f"{two}: document 1 (Service default/zoo): spec.ports[0].port: "
        f"10.96.0.10:80/TCP is taken by {one}: document 1 (Service default/web)"
    )
    two.write_text(json.dumps(SERVICE))
    assert f"there is one already: {one}" in refusal(tmp_path).reason


class TestSize:
    def test_100_megabytes_are_refused_unread(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = tmp_path / "big.yaml"
        with path.open("wb") as file:
            file.truncate(100 << 20)
        monkeypatch.setattr(Path, "open", lambda *args: pytest.fail("the file was opened"))
        assert refusal(path).reason == "104857600 bytes, at most 16777216 are read of one file"

    def test_the_limit_is_the_callers(self, tmp_path: Path):
        path = tmp_path / "web.json"
        path.write_text(json.dumps(SERVICE))
        size = path.stat().st_size
        assert StaticYaml(path, max_bytes=size).read()
        assert refusal(path, max_bytes=size - 1).reason.startswith(f"{size} bytes")


class TestNotEvenText:
    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (bytes(range(1, 256)), "byte 127: this is not UTF-8 text"),
            ("kind: Sërvice".encode("latin-1"), "byte 7: this is not UTF-8 text"),
            ("kind: Service".encode("utf-16"), "byte 0: this is not UTF-8 text"),
            (b"kind: \0", "control characters are not allowed"),
            (b"\x7fELF\x02\x01\x01", "control characters are not allowed"),
        ],
    )
    def test_garbage_is_refused(self, tmp_path: Path, data: bytes, said: str):
        path = tmp_path / "garbage.yaml"
        path.write_bytes(data)
        assert str(refusal(path)) == f"{path}: {said}"

    @pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "a:\n" + " " * 9])
    def test_nesting_without_end_is_refused(self, tmp_path: Path, opening: str):
        path = tmp_path / "deep.yaml"
        path.write_text(opening * 100_000)
        refusal(path)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[" * 100_000, "lists and mappings are nested too deep"),
            ("9" * 5000, "a number has thousands of digits"),
            ('{"kind": "Service", "kind": "Pod"}', "key 'kind' is given twice"),
            ('{"kind": "Service",\n "spec" {}}', "line 2, column 9: Expecting ':' delimiter"),
            ('{"kind": "Service"} {}', "line 1, column 21: Extra data"),
        ],
        ids=["deep", "digits", "twice", "syntax", "two"],
    )
    def test_json_is_refused_alike(self, tmp_path: Path, text: str, said: str):
        path = tmp_path / "bad.json"
        path.write_text(text)
        assert str(refusal(path)) == f"{path}: {said}"
