"""What counts as public, and what may be opened."""

from __future__ import annotations

import ipaddress

import pytest

from millrace import InvalidRequest
from millrace.gateway.webhook_addresses import Allowed, is_public

PUBLIC = [
    "8.8.8.8", "1.1.1.1", "172.32.0.1", "192.169.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450:4001::1",
    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
]  # fmt: skip
NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1",
    "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "168.63.129.16",
    "::", "::1", "::7f00:1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8", "100::1", "2001::1", "2001:db8::1",
    "2002:a00:1::", "2002:808:808::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0",
    "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    assert Allowed().permits("example.com", address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    assert not Allowed().permits("example.com", address)


def test_networks_and_hosts_that_are_allowed() -> None:
    allowed = Allowed.of(["10.0.0.0/8", "192.168.1.7", "fd00::/8", "::1", "Hooks.Internal."])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "192.168.1.7", "fd00::1", "::1", "8.8.8.8"):
        assert allowed.permits("example.com", address), address
    for address in ("192.168.1.8", "fe80::1", "127.0.0.1", "::ffff:127.0.0.1"):
        assert not allowed.permits("example.com", address), address
    for host in ("hooks.internal", "HOOKS.internal."):
        assert allowed.permits(host, "127.0.0.1"), host
    for host in ("internal", "a.hooks.internal", "hooks.internal.example.com"):
        assert not allowed.permits(host, "127.0.0.1"), host


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0/8", "300.1.1.1", "", "a:b", "10.0.0.0/33", "host/8"])
def test_what_cannot_be_meant(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no network"):
        Allowed.of([text])
