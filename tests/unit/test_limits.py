"""The table of limits: whole, and consistent with itself and with what is below."""

from dormouse_core import limits

UNITS = {"KIB", "MIB", "GIB"}


def test_every_constant_is_in_the_table_once() -> None:
    constants = {name for name, value in vars(limits).items() if name.isupper() and isinstance(value, int | float)} - UNITS
    names = [row.name for _, rows in limits.TABLE for row in rows]
    assert sorted(names) == sorted(constants)


def test_every_row_says_where_from_and_who_checks() -> None:
    for _, rows in limits.TABLE:
        for row in rows:
            assert row.what, row
            assert row.source, row
            assert row.check, row
            assert limits.shown(row), row


def test_what_we_send_fits_into_what_is_below() -> None:
    assert limits.STATE_BYTES + limits.RECORD_OVERHEAD_BYTES == limits.RECORD_BYTES
    assert limits.KEPT_REPLY_BYTES < limits.RECORD_OVERHEAD_BYTES
    assert max(limits.RECORD_BYTES, limits.TXN_BYTES) < limits.ETCD_REQUEST_BYTES
    assert limits.TXN_OPS <= limits.ETCD_TXN_OPS
    assert 2 * limits.FAILOVER_SHARDS <= limits.TXN_OPS
    assert limits.MANIFEST_BYTES < limits.ETCD_REQUEST_BYTES
    assert limits.MESSAGE_BYTES <= limits.MESSAGE_BYTES_MAX
    assert limits.LEASE_SECONDS >= 3 * limits.LEASE_KEEPALIVE_SECONDS
    assert limits.FUNCTION_NAME_CHARACTERS + len("-0123456789") == 63
