"""Labels: who somebody is, in one canonical form that every node comes to.

Two nodes that derived the labels of a pod differently would know it under two identities. So there is one
function for it, :func:`pod_labels`, and one text of a set of labels, :attr:`Labels.text`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from attrs import field, frozen

from k8sdatapath.errors import ModelError
from k8sdatapath.model.address import shown
from k8sdatapath.model.named_port import NamedPort

__all__ = ["Label", "LabelFilter", "Labels", "node_labels", "pod_labels"]

NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"
CLUSTER = "io.cilium.k8s.policy.cluster"

_DERIVED = ("io.kubernetes.", "io.cilium.k8s.")
"""Keys that only :func:`pod_labels` gives: a pod that has such a label would choose who it is."""

_SOURCE = re.compile(r"[a-z][a-z0-9-]{0,31}")
_KEY = re.compile(r"[^=;\s\x00-\x1f\x7f]{1,400}")
_VALUE = re.compile(r"[^;\x00-\x1f\x7f]{0,400}")


@frozen(order=True)
class Label:
    """One label: ``Label("app", "web")``, as text ``k8s:app=web``.

    :param source: who says so: ``k8s``, ``reserved``, ``cidr``, ``fqdn``, ...
    :raises ModelError: a source, key or value that no label has.
    """

    key: str
    value: str = ""
    source: str = field(default="k8s", kw_only=True)

    def __attrs_post_init__(self) -> None:
        parts = (self.source, _SOURCE, "source"), (self.key, _KEY, "key"), (self.value, _VALUE, "value")
        for text, form, what in parts:
            if type(text) is not str or not form.fullmatch(text):
                raise ModelError(f"{shown(text)} is not the {what} of a label")

    @classmethod
    def parse(cls, text: str) -> Label:
        """``source:key=value``; without a source, it is ``k8s``; without ``=``, the value is empty.

        :raises ModelError: it is none.
        """
        if type(text) is not str:
            raise ModelError(f"{shown(text)} is not a label")
        name, _, value = text.partition("=")
        source, colon, key = name.partition(":")
        return cls(key, value, source=source) if colon else cls(name, value)

    @cached_property
    def name(self) -> str:
        """Source and key."""
        return f"{self.source}:{self.key}"

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


def _to_labels(values: Iterable[Label | str]) -> tuple[Label, ...]:
    if isinstance(values, str | Label):
        raise ModelError(f"labels are an iterable; {shown(values)} is a single one")
    found: dict[str, Label] = {}
    for value in values:
        label = value if isinstance(value, Label) else Label.parse(value)
        if found.setdefault(label.name, label) != label:
            raise ModelError(f"{label.name} has two values: {found[label.name].value!r}, {label.value!r}")
    return tuple(found[name] for name in sorted(found))


@frozen(repr=False)
class Labels:
    """A set of labels, in whatever order they are given: ``Labels(["k8s:app=web", "k8s:tier=front"])``.

    :raises ModelError: a label that is none, or a key with two values.
    """

    labels: tuple[Label, ...] = field(default=(), converter=_to_labels)

    @classmethod
    def parse(cls, text: str) -> Labels:
        """The set of a canonical text.

        :raises ModelError: it is none.
        """
        found = cls(each for each in text.split(";") if each)
        if found.text != text:
            raise ModelError(f"{shown(text)} is not the canonical text of labels")
        return found

    @cached_property
    def text(self) -> str:
        """The canonical text: ``source:key=value;`` of each, sorted. Different sets have different texts."""
        return "".join(f"{each};" for each in self.labels)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the text, in 52 characters that a Kubernetes object may be named by."""
        digest = hashlib.sha256(self.text.encode()).digest()
        return base64.b32encode(digest).decode().rstrip("=").lower()

    def get(self, key: str, source: str = "") -> str | None:
        """The value under a key; of any source if none is told. None: there is no such label."""
        for each in self.labels:
            if each.key == key and source in ("", each.source):
                return each.value
        return None

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __contains__(self, label: object) -> bool:
        return label in self.labels

    def __str__(self) -> str:
        return " ".join(map(str, self.labels))

    def __repr__(self) -> str:
        return f"Labels({[str(each) for each in self.labels]!r})"


def _to_patterns(patterns: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    if isinstance(patterns, str):
        raise ModelError(f"a filter takes an iterable of patterns; {shown(patterns)} is a single one")
    try:
        return tuple(re.compile(each) for each in patterns)
    except (re.error, TypeError) as error:
        raise ModelError(f"a pattern of a label filter: {error}") from None


#: What only one pod has, or only the pods of one revision: an identity by itself would never be shared.
_FLEETING = (
    r"pod-template-(hash|generation)$",
    r"controller-revision-hash$",
    r"statefulset\.kubernetes\.io/pod-name$",
    r"apps\.kubernetes\.io/pod-index$",
    r"batch\.kubernetes\.io/(controller-uid|job-completion-index)$",
    r"controller-uid$",
)


@frozen
class LabelFilter:
    """Which labels of pods make their identity: selectors see no others.

    Each pattern is a regular expression that a key must begin with. Where several fit, the longest match
    decides, and ``exclude`` if both are as long.

    :param include: once one is given, what fits none is left out.
    :param exclude: by default what only one pod has, such as ``statefulset.kubernetes.io/pod-name``.
    :raises ModelError: a pattern that is no regular expression.
    """

    include: tuple[re.Pattern[str], ...] = field(default=(), converter=_to_patterns)
    exclude: tuple[re.Pattern[str], ...] = field(default=_FLEETING, converter=_to_patterns)

    def keeps(self, key: str) -> bool:
        """Whether labels of this key count."""
        included, excluded = _longest(self.include, key), _longest(self.exclude, key)
        return included > excluded or (included == excluded == -1 and not self.include)


def _longest(patterns: tuple[re.Pattern[str], ...], key: str) -> int:
    return max((found.end() for each in patterns if (found := each.match(key))), default=-1)


_DEFAULT = LabelFilter()


def pod_labels(
    labels: Mapping[str, str],
    *,
    namespace: str,
    namespace_labels: Mapping[str, str] | None = None,
    service_account: str = "",
    cluster: str = "default",
    ports: Iterable[NamedPort] = (),
    filter: LabelFilter = _DEFAULT,
) -> Labels:
    """The labels that a pod is known by.

    Namespace, service account and cluster are among them, and the labels of the namespace. They have the
    names that Cilium gives them, and pass every filter. A pod that claims such a label is not believed. What
    has ports with names is somebody else than what has none, or others: rules may allow a port by its name.

    :raises ModelError: a label that is none.
    """
    if not isinstance(labels, Mapping):
        raise ModelError(f"labels of a pod are a mapping, not {shown(labels)}")
    found = [
        Label(key, value)
        for key, value in labels.items()
        if not key.startswith(_DERIVED) and filter.keeps(key)
    ]
    found += [Label(NAMESPACE_LABELS + key, value) for key, value in (namespace_labels or {}).items()]
    found += [Label(NAMESPACE, namespace), Label(CLUSTER, cluster)]
    if service_account:
        found.append(Label(SERVICE_ACCOUNT, service_account))
    return Labels([*found, *(each.label for each in ports)])


def node_labels(labels: Mapping[str, str], *, remote: bool, filter: LabelFilter = _DEFAULT) -> Labels:
    """The labels that a node is known by: its own, and whether it is the one where they count.

    :raises ModelError: a label that is none.
    """
    own = [Label(key, value, source="node") for key, value in labels.items() if filter.keeps(key)]
    return Labels([*own, Label("remote-node" if remote else "host", source="reserved")])
