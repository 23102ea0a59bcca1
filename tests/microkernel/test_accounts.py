"""Accounts: limits hold, and what was charged is what is in use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.ipc.errors import QuotaExceeded
from atoll.microkernel.accounts import RESOURCES, Ledger
from atoll.microkernel.image import Account


def test_a_charge_past_the_limit_charges_nothing() -> None:
    ledger = Ledger({"people": Account(channels=2)})
    ledger.charge("people", "channels", 2)
    with pytest.raises(QuotaExceeded) as caught:
        ledger.charge("people", "channels")
    assert caught.value.fields == {"account": "people", "resource": "channels", "limit": 2}
    assert ledger.usage() == {"people": {"channels": 2}}


def test_an_account_without_limits_has_the_built_in_ones() -> None:
    assert Ledger().limit("anyone", "pending") == Account().pending


@pytest.mark.parametrize("amount", [1, -1])
def test_a_release_of_what_was_not_charged_is_a_fault(amount: int) -> None:
    with pytest.raises(
        ValueError, match=f"release of {amount} channels of account 'a', of which 0 are charged"
    ):
        Ledger().release("a", "channels", amount)


def test_a_negative_charge_is_a_fault() -> None:
    with pytest.raises(ValueError, match="release it instead"):
        Ledger().charge("a", "channels", -1)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(RESOURCES), st.integers(0, 40), st.booleans()))
)
def test_use_is_the_sum_of_charges_less_releases(steps: list[tuple[str, str, int, bool]]) -> None:
    limits = Account(channels=100, capabilities=90, descriptors=80, pending=70)
    ledger = Ledger({"a": limits, "b": limits})
    used: dict[tuple[str, str], int] = {}
    for account, resource, amount, charging in steps:
        key = (account, resource)
        try:
            if charging:
                ledger.charge(account, resource, amount)  # type: ignore[arg-type]
                used[key] = used.get(key, 0) + amount
            else:
                ledger.release(account, resource, amount)  # type: ignore[arg-type]
                used[key] = used.get(key, 0) - amount
        except QuotaExceeded:
            assert used.get(key, 0) + amount > getattr(limits, resource)
        except ValueError:
            assert amount > used.get(key, 0)
        assert all(0 <= amount <= getattr(limits, resource) for (_, resource), amount in used.items())
    flat = {(a, r): n for a, resources in ledger.usage().items() for r, n in resources.items()}
    assert flat == {key: amount for key, amount in used.items() if amount}
