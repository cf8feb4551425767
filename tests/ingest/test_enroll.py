"""Enrolment, with a real broker that runs on the printed lines: who is enrolled gets in and to its own topics, nobody else does."""

from __future__ import annotations

import json
import stat
import threading
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from cryptography import x509

from devices.contract import Capture
from devices.errors import InputError, LinkError, PumpledgerError
from ingest import enroll, files, gateway
from ingest.cli import main
from ingest.gateway import Uplink
from ingest.hub import Hub, broker_client
from ingest.lake import Lake
from ingest.store import Arrival, Store
from tests.broker import PATIENCE_S, Broker


def run(*words: object, ok: int = 0) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == ok, done.output
    return done.output


class Agency:
    """An authority, a broker that runs on the lines that its enrolments print, and the addresses they give."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        self.lines: dict[str, Any] = {}

    def enroll(self, name: str, folder: str = "") -> str:
        """Enrolls, and gives the broker's address that the gateway is to have."""
        where = self.folder / (folder or name)
        to = ("--out", where, "--ca", self.folder / "ca", "--lake", self.folder / "lake", "--broker", f"localhost:{self.broker.port}")
        self.lines = json.loads(run("enroll", name, *to, "--json"))
        written = tomllib.loads("\n".join(self.lines["settings"]))
        assert written.get("gateway") == (None if name == enroll.HUB else name)
        return str(written["broker"])

    def start(self) -> None:
        rules = self.folder / "acl"
        rules.write_text("\n".join(self.lines["acl"]) + "\n")
        first, *rest = self.lines["mosquitto"]
        assert first == f"listener {self.broker.port}"
        self.broker.stop()
        self.broker.start(*rest, f"acl_file {rules}")


@pytest.fixture
def agency(broker: Broker, tmp_path: Path) -> Agency:
    return Agency(broker, tmp_path)


def test_an_enrolled_gateway_delivers_to_an_enrolled_hub(agency: Agency, tmp_path: Path) -> None:
    hub, edge = agency.enroll(enroll.HUB), agency.enroll("gw7")
    agency.start()
    home = tmp_path / "home"
    home.mkdir()
    capture = Capture(data=b"page", family="canonical", pump_id="canonical:A17")
    with Store(home / gateway.OUTBOX) as outbox:
        outbox.append([(capture, Arrival(datetime(2026, 3, 10, tzinfo=UTC), "file"))])
    with Hub(hub, tmp_path / "store.sqlite"), Uplink(edge, home, "gw7") as uplink:
        assert uplink.wait_for_receipts(PATIENCE_S) == 0
    with Store(tmp_path / "store.sqlite") as store:
        assert [found for found, _ in store.pending()] == [capture]


def test_a_stranger_is_refused(agency: Agency, tmp_path: Path) -> None:
    agency.enroll("gw7")
    agency.start()
    ca = tmp_path / "gw7" / "ca.crt"
    others = Agency(agency.broker, tmp_path / "elsewhere")
    others.enroll("gw7")
    theirs = tmp_path / "elsewhere" / "gw7" / "gw7"
    for number, query in enumerate((f"ca={ca}", f"ca={ca}&cert={theirs}.pem&key={theirs}.key")):
        with pytest.raises(LinkError):
            Hub(f"mqtts://localhost:{agency.broker.port}?{query}", tmp_path / f"{number}.sqlite").start()
    with pytest.raises(LinkError):
        Hub(f"mqtt://localhost:{agency.broker.port}", tmp_path / "plain.sqlite").start()


def test_a_broker_of_another_authority_is_not_spoken_to(agency: Agency, tmp_path: Path) -> None:
    agency.enroll("gw7")
    agency.start()
    elsewhere = Agency(agency.broker, tmp_path / "elsewhere").enroll(enroll.HUB)
    with pytest.raises(LinkError, match="TLS failed"):
        Hub(elsewhere, tmp_path / "store.sqlite").start()


def test_a_gateway_publishes_and_hears_under_its_own_name_alone(agency: Agency) -> None:
    hub, seven, eight = agency.enroll(enroll.HUB), agency.enroll("gw7"), agency.enroll("gw8")
    agency.start()
    heard: dict[str, list[str]] = {"hub": [], "gw7": []}
    there, done = {name: threading.Event() for name in heard}, {name: threading.Event() for name in heard}

    def listen(name: str, url: str, *topics: str) -> Any:
        client, host, port = broker_client(url, f"listener-{name}")

        def message(_: Any, __: Any, told: Any) -> None:
            heard[name].append(told.topic)
            if told.payload == b"last":
                done[name].set()

        client.on_connect = lambda client, *_: client.subscribe([(topic, 1) for topic in topics])
        client.on_subscribe = lambda *_: there[name].set()
        client.on_message = message
        client.connect(host, port)
        client.loop_start()
        return client

    listeners = [listen("hub", hub, "pl1/#"), listen("gw7", seven, "hub1/gw7/receipt", "hub1/gw8/receipt", "pl1/#", "#")]
    assert all(event.wait(PATIENCE_S) for event in there.values())
    for url, topics in ((eight, ("pl1/gw7/status", "hub1/gw7/receipt", "pl1/gw8/status")), (hub, ("hub1/gw8/receipt", "hub1/gw7/receipt"))):
        client, host, port = broker_client(url, "publisher")
        client.connect(host, port)
        client.loop_start()
        for topic in topics:
            client.publish(topic, b"last" if topic == topics[-1] else b"", qos=1).wait_for_publish(PATIENCE_S)
        client.disconnect()
        client.loop_stop()
    assert all(event.wait(PATIENCE_S) for event in done.values())
    for client in listeners:
        client.disconnect()
        client.loop_stop()
    assert set(heard["hub"]) == {"pl1/gw8/status"}
    assert set(heard["gw7"]) == {"hub1/gw7/receipt"}


def made(tmp_path: Path, name: str = "gw7", out: str = "", **more: Any) -> enroll.Enrolled:
    return enroll.enroll(name, tmp_path / (out or name), authority=tmp_path / "ca", host="mqtt.example", **more)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_authority_is_made_once_and_every_key_is_its_users_alone(tmp_path: Path) -> None:
    first = made(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "ca").iterdir()}
    second = made(tmp_path, "gw8")
    assert {path.name: path.read_bytes() for path in (tmp_path / "ca").iterdir()} == before
    assert set(before) == {"ca.crt", "ca.key", "broker-mqtt.example.pem", "broker-mqtt.example.key"}
    keys = sorted(tmp_path.rglob("*.key"))
    assert len(keys) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert sorted(path.name for path in (tmp_path / "gw7").iterdir()) == ["ca.crt", "gw7.key", "gw7.pem"]
    assert first.key.read_bytes() != second.key.read_bytes()
    assert {first.ca.read_bytes(), second.ca.read_bytes()} == {before["ca.crt"]}


def test_a_certificate_names_its_gateway_and_ends(tmp_path: Path) -> None:
    found = certificate(made(tmp_path, days=30).certificate)
    assert found.subject.rfc4514_string() == "CN=gw7"
    assert found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert x509.ExtendedKeyUsageOID.CLIENT_AUTH in found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert timedelta(days=29) < found.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=30)
    found.verify_directly_issued_by(certificate(tmp_path / "ca" / "ca.crt"))
    assert made(tmp_path, "gw8", days=99_999).until == certificate(tmp_path / "ca" / "ca.crt").not_valid_after_utc


def test_a_certificate_that_is_there_is_not_replaced_and_can_be_renewed(tmp_path: Path) -> None:
    first = made(tmp_path)
    before, key = first.certificate.read_bytes(), first.key.read_bytes()
    with pytest.raises(InputError, match="has a certificate already"):
        made(tmp_path)
    assert first.certificate.read_bytes() == before
    first.certificate.unlink()
    assert made(tmp_path).certificate.read_bytes() != before
    assert first.key.read_bytes() == key


def test_an_enrolment_that_was_cut_anywhere_is_ended_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(Exception):  # noqa: N818 - a power cut is no error of ours
        pass

    calls = 0
    for cut_at in range(1000):
        folder = tmp_path / str(cut_at)
        calls = 0

        def seam(_: str, __: Path, cut_at: int = cut_at) -> None:
            nonlocal calls
            calls += 1
            if calls == cut_at + 1:
                raise Cut

        monkeypatch.setattr(files, "seam", seam)
        try:
            made(folder)
        except Cut:
            monkeypatch.setattr(files, "seam", None)
            if not (folder / "gw7" / "gw7.pem").exists():
                made(folder)
            certificate(folder / "gw7" / "gw7.pem").verify_directly_issued_by(certificate(folder / "ca" / "ca.crt"))
            certificate(folder / "ca" / "broker-mqtt.example.pem").verify_directly_issued_by(certificate(folder / "ca" / "ca.crt"))
        else:
            break
    assert calls > 50


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda ca: (ca / "ca.key").chmod(0o640), "key_mode"),
        (lambda ca: (ca / "ca.key").unlink(), "ca"),
        (lambda ca: (ca / "ca.key").write_text("-----BEGIN"), "key"),
        (lambda ca: (ca / "ca.key").write_bytes((ca / "broker-mqtt.example.key").read_bytes()), "ca"),
        (lambda ca: (ca / "ca.crt").write_text("no certificate"), "ca"),
    ],
)
def test_an_authority_that_is_not_whole_signs_nothing(tmp_path: Path, change: Any, code: str) -> None:
    made(tmp_path)
    change(tmp_path / "ca")
    with pytest.raises(InputError) as raised:
        made(tmp_path, "gw8")
    assert raised.value.code == code
    assert raised.value.do
    assert not (tmp_path / "gw8" / "gw8.pem").exists()


@pytest.mark.parametrize("name", ["", "a b", "gw/7", "+", "#", "x" * 65, "gw\n"])
def test_names_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as raised:
        made(tmp_path, name, out="out")
    assert raised.value.code == "name"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["", "a b", "../x", "h_st/", "-h"])
def test_hosts_that_are_none_are_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(InputError) as raised:
        enroll.enroll("gw7", tmp_path / "out", authority=tmp_path / "ca", host=host)
    assert raised.value.code == "host"


def test_a_folder_that_leaves_is_never_the_authoritys(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        made(tmp_path, "ca", out="ca")
    assert raised.value.code == "out"
    assert made(tmp_path, "ca", out="apart").key.read_bytes() != (tmp_path / "ca" / "ca.key").read_bytes()


def test_a_broker_may_be_an_address(tmp_path: Path) -> None:
    told = enroll.enroll("gw7", tmp_path / "gw7", authority=tmp_path / "ca", host="::1", port=9999)
    url = tomllib.loads("\n".join(told.settings))["broker"]
    assert (urlsplit(url).hostname, urlsplit(url).port) == ("::1", 9999)
    broker_client(url, "x")
    names = certificate(tmp_path / "ca" / "broker-::1.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["::1"]


def test_the_command_prints_what_to_write_and_takes_the_lakes_broker(tmp_path: Path) -> None:
    lake = Lake.create(tmp_path / "lake")
    assert "--broker" in run("enroll", "gw7", "--out", tmp_path / "a b", "--lake", lake.root, ok=1)
    (lake.root / "pumpledger.toml").write_text('broker = "mqtt://mqtt.example"\n')
    told = run("enroll", "gw7", "--out", tmp_path / "a b", "--lake", lake.root)
    for line in ("require_certificate true", "use_identity_as_username true", "pattern write pl1/%u/#", 'gateway = "gw7"'):
        assert line in told.splitlines()
    [url] = [line for line in told.splitlines() if line.startswith("broker = ")]
    broker_client(tomllib.loads(url)["broker"], "x")
    assert "PRIVATE" not in told
    assert (lake.root / "ca" / "ca.key").exists()
    assert lake.verify_files() == []
    assert "pumpledger enroll gw7" in run("enroll", "--help")
    with pytest.raises(PumpledgerError):
        Lake.open(tmp_path / "a b")
