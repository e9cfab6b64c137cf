"""Which addresses a webhook may reach: a gateway must not call for strangers what only its own network can reach."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from millrace_schemas import InvalidRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: What is assigned to the public at all; all else is local, reserved, multicast, or an IPv4 address in disguise.
_IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")
#: Within it: tunnels that lead to IPv4 addresses (Teredo, 6to4), and examples of documents, global to some Pythons.
_IPV6_REFUSED = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2002::/16", "3fff::/20")))
#: The way of IPv6-only machines to IPv4 addresses, which stand at the end.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Protocol assignments (Oracle's metadata are there), 6to4 relays, and where each machine of Azure finds its host.
_IPV4_REFUSED = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be called besides public addresses: networks, and hosts by name whatever their addresses are."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, texts: Iterable[str]) -> Allowed:
        """From networks like 10.0.0.0/8, addresses, and names of hosts. Raises InvalidRequest."""
        networks: list[Network] = []
        hosts: set[str] = set()
        for text in texts:
            try:
                networks.append(ipaddress.ip_network(text))
                continue
            except ValueError as e:
                if "/" in text or ":" in text or not text or text[-1:].isdecimal():
                    raise InvalidRequest(
                        f"{text[:100]!r} is no network like 10.0.0.0/8 and no host name: {e}", param="webhook-allow"
                    ) from e
            hosts.add(_name(text))
        return cls(tuple(networks), frozenset(hosts))

    def permits(self, host: str, address: str) -> bool:
        """Whether `host`, which has this address, may be called there."""
        if _name(host) in self.hosts:
            return True
        found = _plain(ipaddress.ip_address(address))
        return is_public(found) or any(found in network for network in self.networks)


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could reach it, too."""
    address = _plain(address)
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast and not any(address in net for net in _IPV4_REFUSED)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _IPV6_UNICAST and address.is_global and not any(address in net for net in _IPV6_REFUSED)


def _plain(address: Address) -> Address:
    """::ffff:10.0.0.1 is 10.0.0.1."""
    return getattr(address, "ipv4_mapped", None) or address


def _name(host: str) -> str:
    return host.lower().rstrip(".")
