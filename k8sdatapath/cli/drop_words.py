"""Reasons of drops in the words that Hubble's clients have for them."""

from __future__ import annotations

from k8sdatapath.model.flow import DropReason

__all__ = ["drop_text"]

#: Those whose words are not their names.
_WORDS: dict[int, str] = {
    DropReason.INVALID_PACKET_DROPPED: "Invalid packet",
    DropReason.CT_TRUNCATED_OR_INVALID_HEADER: "CT: Truncated or invalid header",
    DropReason.CT_MISSING_TCP_ACK_FLAG: "Fragmentation needed",
    DropReason.CT_UNKNOWN_L4_PROTOCOL: "CT: Unknown L4 protocol",
    DropReason.CT_CANNOT_CREATE_ENTRY_FROM_PACKET: "CT: Can't create entry from packet",
    DropReason.UNSUPPORTED_L3_PROTOCOL: "Unsupported L3 protocol",
    DropReason.UNKNOWN_L4_PROTOCOL: "Unknown L4 protocol",
    DropReason.UNKNOWN_ICMPV4_CODE: "Unknown ICMPv4 code",
    DropReason.UNKNOWN_ICMPV4_TYPE: "Unknown ICMPv4 type",
    DropReason.UNKNOWN_ICMPV6_CODE: "Unknown ICMPv6 code",
    DropReason.UNKNOWN_ICMPV6_TYPE: "Unknown ICMPv6 type",
    DropReason.INVALID_GENEVE_OPTION: "Invalid Geneve option",
    DropReason.UNKNOWN_L3_TARGET_ADDRESS: "Unknown L3 target address",
    DropReason.STALE_OR_UNROUTABLE_IP: "Stale or unroutable IP",
    DropReason.ERROR_WHILE_CORRECTING_L3_CHECKSUM: "Error while correcting L3 checksum",
    DropReason.ERROR_WHILE_CORRECTING_L4_CHECKSUM: "Error while correcting L4 checksum",
    DropReason.CT_MAP_INSERTION_FAILED: "CT: Map insertion failed",
    DropReason.INVALID_IPV6_EXTENSION_HEADER: "Invalid IPv6 extension header",
    DropReason.IP_FRAGMENTATION_NOT_SUPPORTED: "IP fragmentation not supported",
    DropReason.NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT: "No tunnel/encapsulation endpoint (datapath BUG!)",
    DropReason.FAILED_TO_INSERT_INTO_PROXYMAP: "NAT 46/64 not enabled",
    DropReason.REACHED_EDT_RATE_LIMITING_DROP_HORIZON: "Reached EDT rate-limiting drop horizon",
    DropReason.UNSUPPORTED_L2_PROTOCOL: "Unsupported L2 protocol",
    DropReason.NO_MAPPING_FOR_NAT_MASQUERADE: "No mapping for NAT masquerade",
    DropReason.UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE: "Unsupported protocol for NAT masquerade",
    DropReason.FIB_LOOKUP_FAILED: "FIB lookup failed",
    DropReason.NAT_NOT_NEEDED: "NAT not needed",
    DropReason.IS_A_CLUSTERIP: "Is a ClusterIP",
    DropReason.FORBIDDEN_ICMPV6_MESSAGE: "Forbidden ICMPv6 message",
    DropReason.DENIED_BY_LB_SRC_RANGE_CHECK: "Denied by LB src range check",
    DropReason.POLICY_DENY: "Policy denied by denylist",
    DropReason.VLAN_FILTERED: "VLAN traffic disallowed by VLAN filter",
    DropReason.INVALID_VNI: "Incorrect VNI from VTEP",
    DropReason.INVALID_TC_BUFFER: "Failed to update or lookup TC buffer",
    DropReason.NO_SID: "No SID was found for the IP address",
    DropReason.MISSING_SRV6_STATE: "SRv6 state was removed during tail call",
    DropReason.NAT46: "L3 translation from IPv4 to IPv6 failed (NAT46)",
    DropReason.NAT64: "L3 translation from IPv6 to IPv4 failed (NAT64)",
    DropReason.AUTH_REQUIRED: "Authentication required",
    DropReason.CT_NO_MAP_FOUND: "No conntrack map found",
    DropReason.SNAT_NO_MAP_FOUND: "No nat map found",
    DropReason.INVALID_CLUSTER_ID: "Invalid ClusterID",
    DropReason.UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP: "Unsupported packet protocol for DSR encapsulation",
    DropReason.NO_EGRESS_GATEWAY: "No egress gateway found",
    DropReason.UNENCRYPTED_TRAFFIC: "Traffic is unencrypted",
    DropReason.TTL_EXCEEDED: "TTL exceeded",
    DropReason.NO_NODE_ID: "No node ID found",
    DropReason.IGMP_HANDLED: "IGMP handled",
    DropReason.IGMP_SUBSCRIBED: "IGMP subscribed",
    DropReason.DROP_HOST_NOT_READY: "Host datapath not ready",
    DropReason.DROP_EP_NOT_READY: "Endpoint policy program not available",
    DropReason.DROP_NO_EGRESS_IP: "No Egress IP configured",
    DropReason.DROP_PUNT_PROXY: "Punt to proxy",
}


def drop_text(reason: int) -> str:
    """A reason for people: ``Policy denied``."""
    if reason in _WORDS:
        return _WORDS[reason]
    if reason not in DropReason.__members__.values():
        return f"{reason}, 0"  # so Hubble's clients print what they do not know
    return DropReason(reason).name.removeprefix("DROP_").replace("_", " ").capitalize()
