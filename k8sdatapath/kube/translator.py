"""Services kept up to date with the objects they are made of, at the cost of what has changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from attrs import define, field, frozen

from k8sdatapath.component import Delta, ObjectKey, Told
from k8sdatapath.errors import ManifestError, ModelError
from k8sdatapath.kube.events import ObjectEvent
from k8sdatapath.kube.frontends import (
    Claim,
    Won,
    claims_of_pod,
    claims_of_service,
    refuse,
    strongest,
    trespass,
    trespasses,
)
from k8sdatapath.kube.objects import EndpointSlice, KubeNode, KubePod, KubeService, Port
from k8sdatapath.kube.refill import plain, refilled
from k8sdatapath.kube.translate import HealthCheck, health_check, host_ports_of, services_of
from k8sdatapath.kube.view import NodeView
from k8sdatapath.model import Frontend, Service

__all__ = ["NodeDelta", "ServiceTranslator"]


@frozen(kw_only=True)
class NodeDelta(Delta):
    """A delta, and what else a node has to know.

    :ivar health_checks: all that load balancers ask this node now. Likewise ``notes``: what is otherwise than
        the objects may make one think. While nothing changes, the same tuple is given again.
    :ivar view: the node as it is seen now.
    """

    health_checks: tuple[HealthCheck, ...] = ()
    notes: tuple[str, ...] = ()
    view: NodeView | None = None


@define
class _Owner:
    """A Service or pod, what it claims, and what has been made of it."""

    object: KubeService | KubePod | None = None
    claims: tuple[Claim, ...] = ()
    strays: tuple[str, ...] = ()
    """Notes about what it may not even claim."""
    services: dict[Frontend, Service] = field(factory=dict)
    check: HealthCheck | None = None
    notes: tuple[str, ...] = ()
    error: ManifestError | ModelError | None = None
    plain: Mapping[Frontend, Port] | None = None
    """The ports of its services, if these can be refilled."""


class ServiceTranslator:
    """The services that objects ask of a node; like ``translate``, but told only of what changes.

    ::

        translator = ServiceTranslator(NodeView("n1"))
        for batch in watch.batches():
            delta = translator.update(batch.events)

    Where two Services contradict each other, the first by name is right, and the other has an error. An
    object that cannot be read, or made into services, counts as it was when it last could.

    :param node: whose. Zone and addresses that it leaves out are those of the Node object of its name, also
        when they change. None: there are only cluster IPs, and no node to be local to.
    """

    def __init__(self, node: NodeView | None = None) -> None:
        self._given = node
        self._view = node
        self._owners: dict[ObjectKey, _Owner] = {}
        self._slices: dict[tuple[str, str], EndpointSlice] = {}
        self._parts: defaultdict[tuple[str, str], dict[str, EndpointSlice]] = defaultdict(dict)
        """Slices of each Service, whether it is known or not."""
        self._rivals: dict[Frontend, tuple[Claim, ...]] = {}
        """Who claims a frontend: first the one that has it."""
        self._unreadable: dict[ObjectKey, ManifestError] = {}
        self._checks: tuple[HealthCheck, ...] = ()
        self._notes: tuple[str, ...] = ()
        # since the last delta
        self._told: dict[ObjectKey, Told] = {}
        self._claiming: dict[ObjectKey, None] = {}
        """Owners whose claims may differ."""
        self._dirty: defaultdict[ObjectKey, set[ObjectKey]] = defaultdict(set)
        """Owners whose services may differ, and the objects which that is for."""
        self._former: dict[ObjectKey, EndpointSlice | None] = {}
        """Slices that have changed, as they were."""
        self._errors: dict[ObjectKey, Exception | None] = {}
        self._renote = False
        self._recheck = False

    @property
    def view(self) -> NodeView | None:
        """The node as it is seen now."""
        return self._view

    def see_from(self, node: NodeView) -> None:
        """Know this of the same node from now on; it counts when its Node object is told of next."""
        self._given = node

    @property
    def services(self) -> tuple[Service, ...]:
        """All that the objects ask for, as of the last delta."""
        return tuple(each for owner in self._owners.values() for each in owner.services.values())

    @property
    def errors(self) -> dict[ObjectKey, Exception]:
        """What cannot be, by object."""
        wrong = {key: owner.error for key, owner in self._owners.items() if owner.error is not None}
        return {**wrong, **self._unreadable}

    @property
    def news_of_errors(self) -> dict[ObjectKey, Exception | None]:
        """Which errors there are since the last delta, and which no more."""
        return dict(self._errors)

    def update(self, events: Iterable[ObjectEvent]) -> NodeDelta:
        """Take events, and tell what they come to."""
        self.take(events)
        return self.delta()

    # -- taking what is told --

    def take(self, events: Iterable[ObjectEvent]) -> None:
        """Take events; what they come to is told by the next :meth:`delta`."""
        for event in events:
            key, known = event.key, event.object
            triggered = known.triggered if type(known) is EndpointSlice else 0.0
            gone = known is None and event.error is None
            self._told[key] = Told(key, event.received, triggered, gone, known)
            if event.error is not None:
                self._unreadable[key] = self._errors[key] = event.error
                continue
            if self._unreadable.pop(key, None):
                owner = self._owners.get(key)
                self._errors[key] = owner.error if owner is not None else None
            if event.kind == "EndpointSlice":
                self._take_slice(key, known if isinstance(known, EndpointSlice) else None)
            elif event.kind in ("Service", "Pod"):
                self._take_owner(key, known if isinstance(known, KubeService | KubePod) else None)
            elif isinstance(known, KubeNode):
                self._take_node(key, known)

    def _take_slice(self, key: ObjectKey, now: EndpointSlice | None) -> None:
        _, namespace, name = key
        before = self._slices.pop((namespace, name), None)
        if now is not None:
            self._slices[namespace, name] = now
        if before == now:
            return
        self._former.setdefault(key, before)
        if before is not None and (now is None or now.service != before.service):
            parts = self._parts[namespace, before.service]
            del parts[name]
            if not parts:
                del self._parts[namespace, before.service]
            self._dirty["Service", namespace, before.service].add(key)
        if now is not None:
            self._parts[namespace, now.service][name] = now
            self._dirty["Service", namespace, now.service].add(key)

    def _take_owner(self, key: ObjectKey, now: KubeService | KubePod | None) -> None:
        if isinstance(now, KubePod) and (self._given is None or now.node != self._given.name):
            now = None
        owner = self._owners.get(key)
        if owner is None:
            if now is None:
                return
            owner = self._owners[key] = _Owner()
        if owner.object != now:
            owner.object = now
            self._claiming[key] = None
            self._dirty[key].add(key)

    def _take_node(self, key: ObjectKey, now: KubeNode) -> None:
        """A Node object that goes tells nothing about the node, which is where we are."""
        if self._given is None or now.name != self._given.name:
            return
        view = self._given.completed(now)
        if view != self._view:
            self._view = view
            for owner in self._owners:
                self._claiming[owner] = None
                self._dirty[owner].add(key)

    # -- telling what it comes to --

    def delta(self) -> NodeDelta:
        """What all events since the last delta come to."""
        self._settle()
        upserts: list[Service] = []
        removed: dict[Frontend, None] = {}
        causes: dict[Frontend, tuple[ObjectKey, ...]] = {}
        for key, reasons in self._dirty.items():
            owner = self._owners.get(key)
            if owner is None:  # slices without a Service
                continue
            why = (key, *(reasons - {key} if key in reasons else reasons))
            changed = self._refill(key, owner, reasons)
            if changed is not None:
                upserts += changed.values()
                causes |= dict.fromkeys(changed, why)
                continue
            before = owner.services
            self._make(key, owner)
            for frontend, service in owner.services.items():
                known = before.get(frontend)
                if known is None or known != service or known.name != service.name:
                    upserts.append(service)
                    causes[frontend] = why
            for frontend in before:
                if frontend not in owner.services:
                    removed[frontend] = None
                    causes.setdefault(frontend, why)
            if owner.object is None:
                del self._owners[key]
        for service in upserts if removed else ():
            removed.pop(service.frontend, None)  # it went from one owner to another
        told, errors = tuple(self._told.values()), self._errors
        self._told, self._errors = {}, {}
        self._dirty.clear()
        self._former.clear()
        self._sum_up()
        return NodeDelta(
            upserts=tuple(upserts),
            removed=tuple(removed),
            told=told,
            causes=causes,
            errors=errors,
            health_checks=self._checks,
            notes=self._notes,
            view=self._view,
        )

    def _settle(self) -> None:
        """Put the claims of some owners in place of those they had, and see who has what now."""
        for key in self._claiming:
            owner = self._owners[key]
            claims, strays = [], []
            for claim in self._claims(owner.object):
                if trespasses(claim, self._view):
                    strays.append(trespass(claim))
                else:
                    claims.append(claim)
            owner.strays = tuple(strays)
            if list(map(_asked, claims)) != list(map(_asked, owner.claims)):
                self._replace(key, owner.claims, claims)
                owner.claims = tuple(claims)
        self._claiming.clear()

    def _claims(self, owner: KubeService | KubePod | None) -> Iterable[Claim]:
        if isinstance(owner, KubeService):
            return claims_of_service(owner, self._view)
        return claims_of_pod(owner, self._view) if owner is not None and self._view is not None else ()

    def _replace(self, key: ObjectKey, before: Iterable[Claim], after: Iterable[Claim]) -> None:
        reasons = self._dirty[key]
        touched: dict[Frontend, tuple[Claim, ...]] = {}
        for claim in before:
            have = self._rivals[claim.frontend]
            touched.setdefault(claim.frontend, have)
            self._rivals[claim.frontend] = tuple(each for each in have if each is not claim)
        for claim in after:
            have = self._rivals.get(claim.frontend, ())
            touched.setdefault(claim.frontend, have)
            self._rivals[claim.frontend] = (*have, claim)
        for frontend, had in touched.items():
            rivals = self._rivals[frontend]
            if not rivals:
                del self._rivals[frontend]
            elif len(rivals) > 1:
                first = strongest(rivals)
                self._rivals[frontend] = (first, *(each for each in rivals if each is not first))
            if len(had) > 1 or len(rivals) > 1:
                for claim in (*had, *rivals):
                    self._dirty[_key(claim.owner)] |= reasons

    def _refill(
        self, key: ObjectKey, owner: _Owner, reasons: set[ObjectKey]
    ) -> Mapping[Frontend, Service] | None:
        """Change the services of a plain owner by what has changed in its slices, if that is all that has."""
        service, ports = owner.object, owner.plain
        if ports is None or not isinstance(service, KubeService) or not self._former.keys() >= reasons:
            return None
        swaps = [(self._former[reason], self._slices.get(reason[1:])) for reason in reasons]
        changed = refilled(service, ports, owner.services, swaps, self._view)
        if changed is None:
            return None
        owner.services |= changed
        if owner.check is not None:
            owner.check = health_check(service, self._parts.get(key[1:], {}).values(), self._view)
            self._recheck = True
        return changed

    def _make(self, key: ObjectKey, owner: _Owner) -> None:
        """Make the services of an owner anew."""
        won: Won = {}
        notes = list(owner.strays)
        errors: list[ManifestError] = []
        for claim in owner.claims:
            first = self._rivals[claim.frontend][0]
            if first is claim:
                won.setdefault((claim.port, claim.frontend.address.version), []).append(claim)
            else:
                refuse(claim, first, notes, errors)
        check: HealthCheck | None = None
        error: ManifestError | ModelError | None = errors[0] if errors else None
        services: Iterator[Service] = iter(())
        if isinstance(owner.object, KubeService):
            parts = self._parts.get(key[1:], {}).values()
            services = services_of(owner.object, won, parts, self._view, notes, owner.services)
            check = health_check(owner.object, parts, self._view)
        elif owner.object is not None:
            services = host_ports_of(owner.object, won, notes)
        try:
            owner.services = {each.frontend: each for each in services}
        except ModelError as wrong:  # then it stays as it was
            error = error or wrong
        if error is not None or owner.error is not None:
            owner.error = error
            if key not in self._unreadable:
                self._errors[key] = error
        told = tuple(dict.fromkeys(notes))
        self._renote |= told != owner.notes
        self._recheck |= check != owner.check
        owner.notes, owner.check = told, check
        owner.plain = None
        if error is None and isinstance(owner.object, KubeService):
            parts = self._parts.get(key[1:], {}).values()
            owner.plain = plain(owner.object, owner.claims, parts, owner.services)

    def _sum_up(self) -> None:
        if self._recheck:
            self._checks = tuple(owner.check for owner in self._owners.values() if owner.check is not None)
        if self._renote:
            self._notes = tuple(note for owner in self._owners.values() for note in owner.notes)
        self._recheck = self._renote = False


def _key(owner: KubeService | KubePod) -> ObjectKey:
    return "Service" if isinstance(owner, KubeService) else "Pod", owner.namespace, owner.name


def _asked(claim: Claim) -> tuple[object, ...]:
    """What makes a claim another one."""
    born = claim.owner.born if isinstance(claim.owner, KubePod) else None
    return claim.kind, claim.frontend, claim.port, born
