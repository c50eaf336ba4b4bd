"""The caller's address: that of the connection, or what trusted proxies tell, read from the right."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.rpc.pipeline.client_address import caller_address, connection_address

pytestmark = pytest.mark.unit

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48"))
PROXY = "ipv4:10.0.0.1:4711"


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:54321", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:54321", "2001:db8::/64"),
        ("ipv6:[2001:db8::ffff:1]:54321", "2001:db8::/64"),
        ("ipv6:%5B2001:db8:0:1::1%5D:54321", "2001:db8:0:1::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:54321", "192.0.2.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:54321", "fe80::/64"),
        ("ipv6:%5B::1%5D:1", "::/64"),
        ("unix:/run/syncbeat.sock", "unix"),
        ("unix:", "unix"),
        ("ipv4:not an address:1", "ipv4"),
        ("", ""),
    ],
)
def test_client_address_of_a_connection(peer: str, address: str) -> None:
    assert caller_address(peer, ["203.0.113.9"], ()) == address
    assert caller_address(peer, ["203.0.113.9"], PROXIES) == address, "it is no proxy that is listed"


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:54321", "192.0.2.1"),
        ("ipv6:%5B2001:DB8:0:0:0:0:0:1%5D:54321", "2001:db8::1"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:54321", "192.0.2.1"),
        ("unix:/run/syncbeat.sock", "unix"),
    ],
)
def test_full_client_address_is_canonical(peer: str, address: str) -> None:
    assert str(connection_address(peer, ["203.0.113.9"], ())) == address
    assert str(connection_address(PROXY, ["2001:DB8::0:2"], PROXIES)) == "2001:db8::2"


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (["192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1:443"], "192.0.2.1"),
        (["2001:db8::1"], "2001:db8::/64"),
        (["[2001:db8::1]:443"], "2001:db8::/64"),
        (["::ffff:192.0.2.1"], "192.0.2.1"),
        # Read from the right, through proxies that are listed only, of either family.
        (["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
        (["203.0.113.9,192.0.2.1,10.1.1.1 , 10.2.2.2"], "192.0.2.1"),
        (["192.0.2.1, 2001:db8:ffff::7, ::ffff:10.0.0.9"], "192.0.2.1"),
        (["203.0.113.9", "192.0.2.1", "10.1.1.1"], "192.0.2.1"),
        (["10.1.1.1"], "10.1.1.1"),  # one of the proxies' own network calls
        # What is no address: the hop that told it is as far as it is known.
        ([], "10.0.0.1"),
        ([""], "10.0.0.1"),
        (["unknown"], "10.0.0.1"),
        (["192.0.2.1, _hidden, 10.1.1.1"], "10.1.1.1"),
        (["192.0.2.1,"], "10.0.0.1"),
        (["192.0.2.1 198.51.100.1"], "10.0.0.1"),
        (["192.0.2.256", "010.1.1.1"], "10.0.0.1"),
        (["for=192.0.2.1"], "10.0.0.1"),
        (["192.0.2.1, [10.1.1.1"], "192.0.2.1"),
    ],
)
def test_client_address_told_by_trusted_proxies(forwarded: list[str], address: str) -> None:
    assert caller_address(PROXY, forwarded, PROXIES) == address
    assert caller_address(PROXY, forwarded, ()) == "10.0.0.1"


def test_client_address_chain_is_read_sixteen_hops_far() -> None:
    assert caller_address(PROXY, ["192.0.2.1" + ", 10.1.1.1" * 15], PROXIES) == "192.0.2.1"
    assert caller_address(PROXY, ["192.0.2.1, 10.9.9.9" + ", 10.1.1.1" * 15], PROXIES) == "10.9.9.9"
    assert caller_address(PROXY, ["1," * 1_000_000], PROXIES) == "10.0.0.1"


@given(
    st.lists(st.one_of(st.text(max_size=40), st.ip_addresses().map(str)), max_size=6),
    st.one_of(st.text(max_size=40), st.just("ipv4:10.0.0.1:1"), st.just("ipv6:%5B2001:db8:ffff::1%5D:1")),
)
def test_client_address_is_decided_by_the_rightmost_untrusted_hop(told: list[str], peer: str) -> None:
    assert len(caller_address(peer, told, PROXIES)) <= max(len(peer), 50)
    assert caller_address(PROXY, [*told, "192.0.2.1"], PROXIES) == "192.0.2.1"
