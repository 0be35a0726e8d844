"""The maps that policies are in."""

from __future__ import annotations

from k8sdatapath import maps
from k8sdatapath.layout import addr, u32
from k8sdatapath.tables.counters import CounterRow
from k8sdatapath.tables.peers import PeerKey
from k8sdatapath.tables.policy import IdentityKey, NameKey, NameRow, PartyRow, PolicyRow, RuleKey, RuleRow

__all__ = ["CONTRACT"]

CONTRACT = {
    "kd_ipcache": maps.Hash[addr, PartyRow],
    "kd_networks": maps.LPMTrie[PeerKey, PartyRow],
    "kd_identities": maps.Hash[IdentityKey, u32],
    "kd_policies": maps.Array[PolicyRow],
    "kd_rules": maps.Hash[RuleKey, RuleRow],
    "kd_rule_counts": maps.PerCpuArray[CounterRow],
    "kd_names": maps.Hash[NameKey, NameRow],
}
