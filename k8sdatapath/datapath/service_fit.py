"""Which of some changes can be made: those that fit, and want no frontend that others keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from k8sdatapath.datapath.service_addresses import Trial
from k8sdatapath.datapath.service_plan import Change, Needs, claimed_twice
from k8sdatapath.errors import CapacityError, DatapathError
from k8sdatapath.model import Frontend, Service

__all__ = ["conflicts", "possible"]


def conflicts(
    changes: Sequence[Change], owners: Mapping[Frontend, Frontend]
) -> Iterator[tuple[Change, Frontend, Frontend]]:
    """Frontends that changes want of services which they leave as they are, and who these are.

    :param owners: frontend -> main frontend of the service that has it.
    """
    touched = {change.frontend for change in changes}
    for change in changes:
        for frontend in change.after.frontends if change.after is not None else ():
            owner = owners.get(frontend)
            if owner is not None and owner not in touched:
                yield change, frontend, owner


def possible(
    changes: Iterable[Change],
    room: Needs,
    needs: Trial,
    owners: Mapping[Frontend, Frontend],
    stands: Callable[[Frontend], Service],
    refused: dict[Frontend, DatapathError],
) -> list[Change]:
    """Leave out what cannot be done, each service as a whole, and put it into ``refused`` with the reason.

    What gives room comes first, then what changes services that are there, then what is new.

    :param needs: what each takes beside those before it.
    :param stands: the service as it stands that has a main frontend.
    """
    found: list[Change] = []
    taken = Needs(0, 0, 0, 0, 0)
    for change in sorted(changes, key=_rank):
        need = needs.take(change)
        over = (taken + need).over(room)
        if over is not None and change.after is not None:
            resource, needed, free = over
            own = need.of_resource(resource)
            needs.put_back(change)
            refused[change.frontend] = CapacityError(resource, own, free - needed + own, str(change.after))
        else:
            found.append(change)
            taken += need
    while strange := list(conflicts(found, owners)):
        for change, frontend, owner in strange:
            refused[change.frontend] = claimed_twice(frontend, stands(owner), change.after)
        found = [change for change in found if change.frontend not in refused]
    return found


def _rank(change: Change) -> int:
    if change.after is None:
        return 0
    return 1 if change.before is not None else 2
