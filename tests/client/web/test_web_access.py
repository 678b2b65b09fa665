"""Who may come in: hosts, origins, tokens, TLS, and the command line that sets them."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys

import jwt
import pytest
from aiohttp import ClientSession, WSServerHandshakeError

from client.web.cli import main, parser, read_access
from client.web.door.access import Access, Refused, bearer

pytestmark = pytest.mark.unit
SECRET = "correct horse battery staple"
ORIGIN = "https://demo.example.org"


def test_a_gateway_that_others_can_reach_needs_a_secret_an_origin_and_tls():
    with pytest.raises(ValueError, match=r"reached from outside: expected --token.*--allow-origin.*--tls-cert"):
        Access(host="0.0.0.0")
    with pytest.raises(ValueError, match=r"expected --tls-cert and --tls-key"):
        Access(host="192.168.1.2", secret=SECRET, origins=frozenset({ORIGIN}))
    assert Access(host="::", secret=SECRET, origins=frozenset({ORIGIN}), behind_proxy=True).scheme == "http"
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        Access(host=host)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"secret": "short"}, "token: expected at least 16 characters, got 5"),
        ({"origins": frozenset({"demo.example.org"})}, "allow-origin: expected scheme://host"),
        ({"origins": frozenset({"https://a.org/path"})}, "allow-origin: expected scheme://host"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Access(**given)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8080"}, None),
        ({"Host": "localhost:8080", "Origin": "http://localhost:8080"}, None),
        ({"Host": "[::1]:8080", "Origin": "http://[::1]:8080"}, None),
        ({"Host": "demo.example.org", "Origin": ORIGIN}, None),
        ({"Host": "127.0.0.1:8080", "Origin": ORIGIN}, None),
        ({"Host": "127.0.0.1:8080", "Origin": "https://evil.example"}, 403),
        ({"Host": "127.0.0.1:8080", "Origin": "null"}, 403),
        ({"Host": "127.0.0.1:8080", "Origin": "http://127.0.0.1:9090"}, 403),
        ({"Host": "rebound.example:8080"}, 403),
        ({}, 403),
    ],
)
def test_host_and_origin(headers, status):
    access = Access(origins=frozenset({ORIGIN}))
    if status is None:
        access.check_place(headers)
    else:
        with pytest.raises(Refused) as refused:
            access.check_place(headers)
        assert refused.value.status == status


def test_tokens_end_and_cannot_be_forged():
    access = Access(secret=SECRET, token_seconds=60)
    token, end = access.make_token(now=1000.0)
    assert end == 1060
    assert access.is_token(token, now=1059.0)
    assert not access.is_token(token, now=1060.0)
    claims = {"aud": "wan-web", "exp": 10**10}
    forged = (
        *(jwt.encode(claims, key, kind) for key, kind in (("guess" * 8, "HS256"), (None, "none"))),
        *("", "x.y.z", "\u00e9.x.y", token.rpartition(".")[0] + "."),
    )
    for each in (*(f"ek_{body}" for body in forged), token.removeprefix("ek_")):
        assert not access.is_token(each, now=1000.0), each
    assert not Access(secret=SECRET + "!").is_token(token, now=1000.0)
    fresh, _ = access.make_token()
    access.check_token(fresh)
    access.check_token(SECRET)
    with pytest.raises(Refused, match="token: expected the gateway's secret"):
        access.check_secret(fresh)
    Access().check_token(None)


def test_a_wall_clock_that_is_set_ends_no_token(monkeypatch):
    access = Access(secret=SECRET, token_seconds=60)
    token, _ = access.make_token()
    monkeypatch.setattr("time.time", lambda: 10**10)
    assert access.is_token(token)
    assert Access(secret=SECRET).is_token(Access(secret=SECRET).make_token()[0])


def test_where_a_token_is_found():
    assert bearer({"Authorization": "Bearer abc"}, ["x.def"], ("x.",)) == "abc"
    assert bearer({"Authorization": "Basic abc"}, ["other", "x.def"], ("x.",)) == "def"
    assert bearer({}, ["other"], ("x.",)) is None


async def test_wrong_tokens_and_foreign_pages_do_not_get_in(start_fake, start_gate):
    fake, _ = await start_fake()
    gate = await start_gate(fake.url, access=Access(secret=SECRET, origins=frozenset({ORIGIN})))

    async def status(path: str, **kwargs) -> int:
        try:
            async with gate.http.ws_connect(gate.url + path, **kwargs):
                return 101
        except WSServerHandshakeError as error:
            return error.status

    token = gate.desk.access.make_token()[0]
    for path, prefix in (("/v1/session", "wan-token."), ("/v1/realtime", "openai-insecure-api-key.")):
        assert await status(path) == 401
        assert await status(path, headers={"Authorization": "Bearer wrong"}) == 401
        assert await status(path, headers={"Authorization": f"Bearer {token}", "Origin": "https://evil.org"}) == 403
        assert await status(path, headers={"Authorization": f"Bearer {token}", "Host": "evil.org"}) == 403
        assert await status(path, headers={"Authorization": f"Bearer {token}", "Origin": ORIGIN}) == 101
        assert await status(path, protocols=("realtime", prefix + token)) == 101
    assert gate.desk.refused == {"token": 4, "origin": 2, "host": 2}
    assert not fake.seen


async def test_only_the_secret_makes_tokens_and_the_page_tells_browsers_to_be_strict(start_fake, start_gate):
    fake, _ = await start_fake()
    gate = await start_gate(fake.url, access=Access(secret=SECRET))
    url = f"{gate.url}/v1/realtime/client_secrets"
    async with gate.http.post(url, headers={"Authorization": f"Bearer {SECRET}"}) as response:
        made = await response.json()
    gate.desk.access.check_token(made["value"])
    async with gate.http.post(url, headers={"Authorization": f"Bearer {made['value']}"}) as response:
        assert response.status == 401
        assert (await response.json())["error"]["message"].startswith("token:")
    async with gate.http.get(f"{gate.url}/v1/stats") as response:
        assert response.status == 401
    async with gate.http.get(f"{gate.url}/") as response:
        assert response.status == 200
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        assert "unsafe" not in response.headers["Content-Security-Policy"]
        page = await response.text()
    for name in ("style.css", "app.js", "worklets/player.js"):
        async with gate.http.get(f"{gate.url}/static/{name}") as response:
            assert response.status == 200
    assert "http://" not in page
    assert "https://" not in page
    async with gate.http.get(f"{gate.url}/static/../cli.py") as response:
        assert response.status == 404


async def test_health_says_whether_a_conversation_could_begin(start_fake, start_gate):
    fake, _ = await start_fake()
    gate = await start_gate(fake.url)
    async with gate.http.get(f"{gate.url}/healthz") as response:
        assert (response.status, await response.json()) == (200, {"ready": True})
    fake.ready = False
    async with gate.http.get(f"{gate.url}/healthz") as response:
        assert response.status == 503


async def test_tls(start_fake, start_gate, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ValueError, match="tls: expected a certificate chain"):
        Access(tls=(key, cert)).ssl_context()
    fake, _ = await start_fake()
    gate = await start_gate(fake.url, access=Access(secret=SECRET, tls=(cert, key)))
    trust = ssl.create_default_context(cafile=str(cert))
    async with gate.http.ws_connect(
        f"wss://127.0.0.1:{gate.port}/v1/session",
        ssl=trust,
        headers={"Authorization": f"Bearer {SECRET}", "Origin": f"https://127.0.0.1:{gate.port}"},
    ) as ws:
        await ws.send_json({"type": "hello"})
        welcome = await ws.receive_json()
    assert welcome["type"] == "welcome"
    gate.desk.access.check_token(welcome["token"])


def test_command_line_reads_secrets_from_files_and_the_environment(tmp_path, monkeypatch, capsys):
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    assert read_access(parser().parse_args(["--token", f"@{path}"])).secret == SECRET
    monkeypatch.setenv("WAN_WEB_TOKEN", SECRET)
    assert read_access(parser().parse_args([])).secret == SECRET
    monkeypatch.delenv("WAN_WEB_TOKEN")
    assert read_access(parser().parse_args([])).secret is None
    assert main(["--host", "0.0.0.0"]) == 2
    assert main(["--tls-cert", str(path)]) == 2
    assert main(["--token", f"@{tmp_path / 'none'}"]) == 2
    errors = capsys.readouterr().err
    assert "error: host 0.0.0.0 can be reached from outside" in errors
    assert "--tls-cert and --tls-key together" in errors


async def test_the_gateway_runs_as_a_command_and_stops_when_told(start_fake):
    fake, _ = await start_fake()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client.web", "--url", fake.url, "--port", "0", "--token", SECRET),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().split()
        assert line[0] == "page"
        address, _, token = line[1].partition("/#token=")
        assert token.startswith("ek_")
        async with (
            ClientSession() as http,
            http.ws_connect(f"{address}/v1/session", protocols=("wan.session.v1", f"wan-token.{token}")) as ws,
        ):
            await ws.send_str(json.dumps({"type": "hello"}))
            assert (await ws.receive_json())["type"] == "welcome"
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_certificate_for_loopback_is_trusted_by_who_is_told_so(tmp_path):
    """F12: openai-js dials wss:// only."""
    args = parser().parse_args(["--tls-loopback", str(tmp_path)])
    access = read_access(args)
    assert access.tls == (tmp_path / "cert.pem", tmp_path / "key.pem")
    assert access.ssl_context() is not None
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
    ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    outside = ["--host", "0.0.0.0", "--token", "x" * 20, "--allow-origin", "https://a.example", "--behind-tls-proxy"]
    with pytest.raises(ValueError, match="tls-loopback: expected it on loopback only"):
        read_access(parser().parse_args([*outside, "--tls-loopback", str(tmp_path)]))
