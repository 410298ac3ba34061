"""Addresses: what is secret in them stays out of everything, redirects keep their rules, and nobody is asked unasked.

Each attack runs against a server on this machine that counts what it is asked for.
"""

from __future__ import annotations

import functools
import http.server
import json
import socket
import threading
import time
import traceback
from pathlib import Path
from urllib import request
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from mmtune import config, paths, train
from mmtune.addresses import bare, host, redact, without_secrets
from mmtune.commands import replay as replay_command
from mmtune.commands import train as train_command
from mmtune.data import fetch, patterns, remote
from mmtune.data.remote import Cache, Remote
from mmtune.data.shards import Corpus
from mmtune.errors import DataError, MmtuneError, UsageError
from mmtune.eval.run import evaluate
from mmtune.recipe import Recipe
from tests.training import world

SECRET = "S3cr3t-Signature-of-the-owner"
PASSWORD = "pass/word+of-the-owner"


class PromptTerm(http.server.ThreadingHTTPServer):
    """Serves a folder to those who sign, drips, or leads elsewhere; counts requests."""

    def __init__(self, folder: Path, signed: bool = False, leads_to: str = "", drip: str = "") -> None:
        self.asked: list[str] = []
        self.signed, self.leads_to, self.drip = signed, leads_to, drip
        self.stop = threading.Event()
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *args: object) -> None:
        self.stop.set()
        self.shutdown()
        super().__exit__(*args)


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.leads_to:
            self.send_response(302)
            self.send_header("Location", self.server.leads_to)
            self.end_headers()
        elif self.server.drip:
            if self.server.drip == "body":
                self.send_response(200)
                self.end_headers()
            self._drip()
        elif self.server.signed and parse_qs(urlsplit(self.path).query).get("X-Signature") != [SECRET]:
            self.send_error(403)
        else:
            super().do_GET()

    def _drip(self) -> None:
        try:
            while not self.server.stop.wait(0.02):
                self.wfile.write(b"x")
        except OSError:
            pass  # the other side has hung up

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    made = Cache(tmp_path / "cache", 10**9, waits=(0.0,))
    monkeypatch.setattr(remote, "cache", lambda: made)
    return made


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return world.tree(tmp_path_factory.mktemp("world"), save_every=1)


def at(tree, address, steps=2):
    """A recipe whose pictures lie at an address, and the folder that they are served from."""
    folder = Path(tree["streams"]["pictures"]["data"][0]).parent
    data = [f"{address}/part-{{0000..0001}}.tar?X-Signature={SECRET}"] if address else []
    changes = {"streams": {"pictures": {"data": data}}, "eval": {"data": data}, "schedule": {"steps": steps}}
    return config.validate(Recipe, config.merge(tree, changes)), folder


def everything(folder: Path) -> bytes:
    """Names and contents of all files of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return b"".join(str(path).encode() + path.read_bytes() for path in files)


def test_a_signature_is_in_no_file_of_a_run_and_in_none_of_its_words(tree, cache, tmp_path, capfd):
    folder = Path(tree["streams"]["pictures"]["data"][0]).parent
    with PromptTerm(folder, signed=True) as site:
        recipe, _ = at(tree, site.address)
        assert train(recipe, tmp_path / "run", progress="lines").finished
        assert any(SECRET in path for path in site.asked), "the server was sent it"
        evaluate(tmp_path / "run", "pocket_qa", data=recipe.eval.data, limit=2, max_tokens=2)
        site.signed = False
        cache.limit = 10  # what comes now is too large, and is named
        for path in cache.folder.rglob("*.tar"):
            path.unlink()
        with pytest.raises(MmtuneError) as caught:
            evaluate(tmp_path / "run", "pocket_qa", data=recipe.eval.data, limit=2)
    said = capfd.readouterr()
    kept = everything(tmp_path).decode(errors="replace")
    for text in (kept, said.out, said.err, str(caught.value), repr(caught.value)):
        assert SECRET not in text
    assert "127.0.0.1" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_a_run_goes_on_with_the_address_given_again(tree, cache, tmp_path):
    folder = Path(tree["streams"]["pictures"]["data"][0]).parent
    with PromptTerm(folder, signed=True) as site:
        recipe, _ = at(tree, site.address, steps=4)
        half = recipe.model_copy(update={"run": recipe.run.model_copy(update={"stop_after_minutes": 1e-9})})
        assert train(half, tmp_path / "run", progress="off").step < 4
        for path in [*cache.folder.rglob("*.tar"), *cache.folder.rglob("*.json")]:
            path.unlink()
        words = (str(tmp_path / "run"), ["schedule.steps=4", "run.stop_after_minutes=null"], None, True, False)
        with pytest.raises(MmtuneError, match="not allowed(.|\n)*give the address again"):
            train_command.run(*words, allow_remote=True)
        again = [f"streams.pictures.data={list(recipe.streams['pictures'].data)}", "eval.data=[]"]
        assert train_command.run(words[0], [*words[1], *again], *words[2:]) == 0
        assert SECRET not in everything(tmp_path / "run").decode(errors="replace")


def test_a_new_signature_does_not_fetch_a_shard_again(tree, cache):
    folder = Path(tree["streams"]["pictures"]["data"][0]).parent
    with PromptTerm(folder) as site:
        for signature in ("one", "two"):
            address = f"{site.address}/part-0000.tar?X-Amz-Signature={signature}&X-Amz-Date=7"
            corpus = Corpus([address])
            corpus.record(corpus.order(0, 0, 0)).files["json"]
            corpus.close()
        assert cache.fetched == 1
    assert Remote("https://h/get?file=a").identity != Remote("https://h/get?file=b").identity


def test_what_a_run_folder_names_is_not_contacted_unasked(tree, cache, tmp_path):
    folder = Path(tree["streams"]["pictures"]["data"][0]).parent
    run = tmp_path / "run"
    with PromptTerm(folder) as site:
        recipe, _ = at(tree, site.address)
        train(recipe, run, progress="off")
        for path in [*cache.folder.rglob("*.tar"), *cache.folder.rglob("*.json")]:
            path.unlink()
        site.asked.clear()
        for call in (
            lambda: evaluate(run, "pocket_qa", limit=1),
            lambda: train_command.run(str(run), [], None, True, False),
            lambda: replay_command.run(run, ["part-0000/000000"], "cpu"),
        ):
            with pytest.raises(UsageError, match="names data at 127.0.0.1(.|\n)*--allow-remote"):
                call()
            assert site.asked == []
        evaluate(run, "pocket_qa", limit=1, max_tokens=1, allow_remote=True, quiet=True)
        assert site.asked


@pytest.mark.parametrize(
    "leads_to", ["http://0.0.0.0:{port}/part-0000.tar", "file:///etc/hostname", "ftp://127.0.0.1/a"]
)
def test_a_redirect_obeys_the_rules_of_the_address_it_comes_from(cache, tmp_path, leads_to):
    (tmp_path / "part-0000.tar").write_bytes(b"secret of the inner network")
    with PromptTerm(tmp_path) as inner, PromptTerm(tmp_path, leads_to=leads_to.format(port=inner.server_port)) as site:
        if leads_to.startswith("http"):
            with request.urlopen(f"{site.address}/a.tar") as answer:
                assert answer.read().startswith(b"secret"), "the plain way follows"
            inner.asked.clear()
        address = f"{site.address}/a.tar?X-Signature={SECRET}"
        with pytest.raises(MmtuneError, match="is redirected to|is not allowed") as caught:
            fetch.tried(address, lambda: fetch.fetch(address, tmp_path / "got", 10**6), (0.0,))
        assert SECRET not in str(caught.value) and not (tmp_path / "got").read_bytes()
        assert inner.asked == []


@pytest.mark.parametrize(
    ("number", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("127.0.0.1", False), ("169.254.169.254", False),
        ("10.0.0.7", False), ("100.64.0.1", False), ("::1", False), ("fe80::1", False), ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("0.0.0.0", False), ("224.0.0.1", False),
    ],
)  # fmt: skip
def test_no_redirect_from_a_public_host_into_a_private_network(monkeypatch, number, public):
    paths = {"shop.example": "93.184.216.34", "inner.example": number}
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "")]
    monkeypatch.setattr(fetch.socket, "getaddrinfo", lambda name, *_, **__: [(*found[0], (paths[name], 0))])
    handler = fetch._Redirects("https://shop.example/a.tar")
    asked = request.Request("https://shop.example/a.tar")
    words = (asked, None, 302, "Found", {}, "https://inner.example/a.tar")
    if public:
        assert handler.redirect_request(*words).full_url == "https://inner.example/a.tar"
    else:
        with pytest.raises(UsageError, match="private network"):
            handler.redirect_request(*words)


@pytest.mark.parametrize("where", ["body", "head"])
def test_a_byte_now_and_then_does_not_keep_a_download_alive(monkeypatch, tmp_path, where):
    monkeypatch.setattr(fetch, "SILENCE", 0.3)
    with PromptTerm(tmp_path, drip=where) as site:
        if where == "body":
            with request.urlopen(f"{site.address}/a.tar", timeout=0.3) as answer:
                begun = time.monotonic()
                while time.monotonic() - begun < 1.0:
                    assert answer.read1(100), "a time-out for each byte never comes"
        begun = time.monotonic()
        with pytest.raises(MmtuneError, match="timed out: .* bytes in"):
            fetch.tried(site.address, lambda: fetch.fetch(f"{site.address}/a.tar", tmp_path / "a", 10**6), (0.0,))
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("at https://h/{0..3}.tar?X-Sig=abc, and more", "at https://h/{0..3}.tar and more"),
        (f"s3://KEY:{PASSWORD}@bucket/a.tar", "s3://bucket/a.tar"),
        ("https://me@h:8443/a@b.tar#part", "https://h:8443/a@b.tar"),
        ("https://h?sig=1", "https://h"),
        ("hf://datasets/some/set@main/a.tar", "hf://datasets/some/set@main/a.tar"),
        ("is this a clip? yes", "is this a clip? yes"),
        ("folder/part?.tar", "folder/part?.tar"),
    ],
)
def test_what_of_an_address_is_kept(text, kept):
    assert without_secrets(text) == kept
    assert without_secrets({"a": [text, (text,)]}) == {"a": [kept, [kept]]}
    assert str(MmtuneError(text, text, text)).count(kept) == 3


def test_a_library_that_quotes_secrets_apart_from_their_address():
    address = f"https://KEY:{PASSWORD}@h/a.tar?X-Signature={SECRET}&n=1"
    said = redact(f"Max retries: /a.tar?X-Signature={SECRET}&n=1 (KEY, {PASSWORD}) at {address}", address)
    assert SECRET not in said and PASSWORD not in said and "https://h/a.tar" in said
    assert host(address) == "h"


@pytest.mark.parametrize("pattern", ["https:{/,/}/HOST/a.tar", "http{s,s}://HOST/a.tar", "{https://HOST/a.tar,b.tar}"])
def test_braces_make_no_address_of_what_is_none(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.refuse_unasked({"data": [pattern]})  # it is no address to whoever looks for addresses, so it must stay none
    monkeypatch.setattr(remote, "find", lambda name: pytest.fail(f"{name} is taken for an address"))
    with pytest.raises((DataError, UsageError), match="files are missing|a remote source that is not read"):
        patterns.expand([pattern])


@pytest.mark.parametrize(
    "text",
    [
        "pipe:curl -u me:SECRET https://host/a.tar",
        "pipe:aws s3 cp s3://bucket/a.tar - --key SECRET",
        "https:/host/a.tar?sig=SECRET",
        "https:///host/a.tar?sig=SECRET",
        "http:\\\\me:SECRET@host",
        "HTTPS://me:SECRET@host/a.tar",
        "https://host/a.tar;token=SECRET",
        "https://host/{0..9}.tar?sig=SECRET",
        "simplecache::https://me:SECRET@host/a.tar",
        'https://me:it"is-SECRET@host/a.tar',
        "https://me:it's-SECRET@host/a.tar",
        "https://me:it is-<SECRET>@host/a.tar",
        "s3://KEY:a?SECRET@bucket/a.tar",
        "https://me and you:it's-<SECRET>@host/a.tar",
        "https://host/a.tar?sig=a'SECRET'",
        "https://host/a.tar?sig=<SECRET>",
        "https%3A%2F%2Fme%3ASECRET%40host%2Fa.tar%3Fsig%3DSECRET",
        "https%253A%252F%252Fme%253ASECRET%2540host%252Fa.tar",
        "https://gate/get/https%3A%2F%2Fhost%2Fa.tar%3Fsig%3DSECRET",
        "https://gate/get/https://me:SECRET@host/a.tar",
        "https://host/a.tar%3Fsig=SECRET",
        "//me:SECRET@host/a.tar",
        "\\\\me:SECRET@host\\a.tar",
        "me:SECRET@host/a.tar",
        "host/a.tar?X-Amz-Signature=SECRET",
        "https:me:SECRET@host/a.tar",
        "my_https://me:SECRET@host/a.tar",
        "PIPE:curl -u me:SECRET https://host/a.tar",
        'pipe:curl -H "Accept: a"\n  -H "Authorization: Bearer SECRET"',
    ],
)
def test_addresses_that_are_odd_are_no_way_out_for_a_secret(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mmtune.commands import show

    assert "SECRET" not in without_secrets(text) and "SECRET" not in str(UsageError(f"{text}: no"))
    show.resolved("pocket", [f"streams.caption.data={json.dumps([text])}"])
    assert "SECRET" not in capsys.readouterr().out


def test_a_setting_is_one_address_as_a_whole() -> None:
    """In words a query ends at a blank; in a list of addresses nothing else follows."""
    address = "https://host/a.tar?name=a b&sig=SECRET"
    assert without_secrets({"data": [address, (address,)]}) == {"data": ["https://host/a.tar", ["https://host/a.tar"]]}


def test_long_texts_are_looked_through_in_linear_time() -> None:
    begun = time.process_time()
    for piece in ("https://", "a:", "a://x:y?", "%253A", "?a=", "//a@", "https://a:b", "https%3A%2F%2F", "pipe:x\n -"):
        without_secrets([piece * 8_000, piece * 8_000 + " end"])
    assert time.process_time() - begun < 5


def test_what_is_no_address_stays() -> None:
    for text in ("C:/a;b.tar", "a pipe: it waits", "a.tar?b", "1:30", "streams: {own: {data: [x]}}"):
        assert without_secrets(text) == text


def test_what_init_says_holds_no_secret_and_its_recipe_works(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mmtune.cli import app

    out, address = tmp_path / "own.yaml", f"https://me:{PASSWORD}@127.0.0.1:9/a.tar?X-Signature={SECRET}"
    words = ["--llm", "pocket", "--encoder", "pocket", "--method", "connector", "--kinds", "image", "--out", str(out)]
    done = CliRunner().invoke(app, ["init", "--data", address, *words])
    assert done.exit_code == 0, done.exception
    assert "https://127.0.0.1:9/a.tar" in done.output and SECRET not in done.output and PASSWORD not in done.output
    recipe = config.load(Recipe, out)
    assert [list(stream.data) for stream in recipe.streams.values()] == [[address]]
    assert SECRET not in recipe.title and "https://127.0.0.1:9/a.tar" in recipe.title


@pytest.mark.parametrize("address", ["s3://KEY:a/SECRET@bucket/a.mp4", "//me:SECRET@host/a.mp4", "pipe:curl SECRET"])
def test_a_chat_shows_no_secret_of_what_it_does_not_read(address: str) -> None:
    from mmtune.serve.references import reference

    with pytest.raises(UsageError) as caught:
        reference("video", address)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_a_library_that_quotes_an_odd_password_in_its_own_way() -> None:
    secret = 'it\'s "mine" <SECRET>'
    address = f"https://me and you:{secret}@host/a.tar?sig=a b SECRET"
    for said in (secret, repr(secret), json.dumps(secret), quote(secret), repr(f"GET {address}"), address):
        assert "SECRET" not in redact(f"no: {said} is none", address), said
    assert bare(address) == "https://host/a.tar"
