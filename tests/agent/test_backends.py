from __future__ import annotations

import itertools
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from agent.backends import Backend, _http_client, chat_model, load_backends, resolve_chain, watch_requests
from models.errors import BackendError, InputError
from tests.agent.loopback import LoopbackServer, error, say

KEY = "sk-very-secret-0123456789"
LEAST = {
    "base_url": "http://gpu-box:8000/v1",
    "model": "my-model",
    "vision": False,
    "structured": "json_schema",
    "context_tokens": 32768,
    "output_tokens": 4096,
}


def backend(name: str = "mine", **fields: object) -> Backend:
    return Backend.model_validate({"name": name, **LEAST, **fields})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEWM_BACKENDS", raising=False)
    return tmp_path


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_the_built_in_backends(home: Path) -> None:
    found = load_backends()
    providers = ("openai", "azure-openai", "deepseek", "deepseek-reasoner", "qwen", "openrouter")
    servers = ("vllm", "sglang", "ollama", "llama-cpp")
    assert set(providers + servers) <= set(found)
    for name, entry in found.items():
        assert entry.name == name
        assert entry.output_tokens < entry.context_tokens
        assert (entry.api_key_env is None) == (name in servers) == entry.local
        if entry.input_price is not None:
            assert entry.output_price is not None
            assert entry.output_price > entry.input_price
            assert re.search(r"\b20\d\d-\d\d-\d\d\b", entry.price_source or "")
    assert found["azure-openai"].azure
    assert found["deepseek-reasoner"].reasoning_field == "reasoning_content"


def test_the_users_file_adds_and_replaces(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"backends": {"gpu-box": LEAST, "ollama": {**LEAST, "model": "another", "fallback": ["gpu-box"]}}}
    write(home / ".config" / "mewm" / "backends.yaml", mine)
    found = load_backends()
    assert found["gpu-box"] == backend("gpu-box")
    assert (found["ollama"].model, found["ollama"].reasoning_field) == ("another", None)
    assert found["vllm"].model == "Qwen/Qwen3-VL-8B-Instruct"
    other = write(home / "other.yaml", {"backends": {"lab": LEAST}})
    monkeypatch.setenv("MEWM_BACKENDS", str(other))
    assert {"lab"} == set(load_backends()) - set(load_backends(write(home / "empty.yaml", "")))
    assert "gpu-box" not in load_backends()


BAD_FILES = [
    ({"backends": {"lab": {**LEAST, "api_key": KEY}}}, "'lab' in .* can't be used: api_key: unknown key"),
    ({"backends": {"lab": {**LEAST, "structured": KEY}}}, "'lab' in .*structured: Input should be 'json_schema'"),
    ({"backends": {"lab": {**LEAST, "base_url": "gpu-box:8000"}}}, "base_url: must be a web address"),
    ({"backends": {"lab": {**LEAST, "base_url": "http://gpu-box:80x/v1"}}}, "base_url: must have a port from 1"),
    ({"backends": {"lab": {**LEAST, "base_url": "http://gpu-box:0/v1"}}}, "base_url: must have a port from 1"),
    ({"backends": {"lab": {**LEAST, "base_url": f"https://me:{KEY}@host/v1"}}}, "must hold no user, password"),
    ({"backends": {"lab": {**LEAST, "base_url": f"https://host/v1?key={KEY}"}}}, "must hold no user, password"),
    ({"backends": {"lab": {**LEAST, "api_version": "2024-10-21"}}}, "api_version and deployment belong together"),
    ({"backends": {"lab": {**LEAST, "input_price": 1}}}, "input_price and output_price belong together"),
    ({"backends": {"lab": {**LEAST, "input_price": 1, "output_price": 2}}}, "a price needs price_source"),
    ({"backends": {"lab": {**LEAST, "return_reasoning": True}}}, "return_reasoning needs reasoning_field"),
    ({"backends": {"lab": {**LEAST, "fallback": ["nobody"]}}}, "'lab' falls back to 'nobody', which is not among"),
    ({"backends": {"lab 1": LEAST}}, "'lab 1' in .*name"),
    ({"backends": {"lab": "http://host"}}, "'lab' in .* must be a mapping of fields"),
    ({"backends": []}, "must hold one mapping named 'backends'"),
    ({"endpoints": {}}, "must hold one mapping named 'backends'"),
    ("backends:\n  lab: [unclosed", r"not valid YAML \(line \d"),
    ("backends: {a: 1\n\tb: 2}", "not valid YAML"),
    ("backends: {}\nbackends: {}\n", r"not valid YAML \(line 1\)"),
]


@pytest.mark.parametrize(("content", "sentence"), BAD_FILES)
def test_a_bad_file_is_one_sentence_without_the_key(home: Path, content: object, sentence: str) -> None:
    path = write(home / "bad.yaml", content)
    with pytest.raises(InputError, match=sentence) as raised:
        load_backends(path)
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value) or "falls back" in str(raised.value)


def test_a_named_file_must_be_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_backends()
    with pytest.raises(InputError, match="does not exist"):
        load_backends(home / "none.yaml")
    monkeypatch.setenv("MEWM_BACKENDS", str(home / "none.yaml"))
    with pytest.raises(InputError, match="does not exist"):
        load_backends()
    with pytest.raises(InputError, match="can't be read"):
        load_backends(home)
    (home / "latin.yaml").write_bytes("backends: {é: 1}".encode("latin-1"))
    with pytest.raises(InputError, match="can't be read"):
        load_backends(home / "latin.yaml")


def test_a_chain_follows_every_fallback_once() -> None:
    graph = {"a": ("b", "c"), "b": ("d", "a"), "c": ("b",), "d": ("a",), "e": ("e",)}
    backends = {name: backend(name, fallback=after) for name, after in graph.items()}
    assert [one.name for one in resolve_chain("a", backends)] == ["a", "b", "d", "c"]
    assert [one.name for one in resolve_chain("c", backends)] == ["c", "b", "d", "a"]
    assert [one.name for one in resolve_chain("e", backends)] == ["e"]
    with pytest.raises(InputError, match="no backend 'x'; the backends are a, b, c, d, e"):
        resolve_chain("x", backends)


def test_variables_are_read_when_the_backend_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = backend(base_url="https://${LAB_HOST}/v1/", model="${LAB_MODEL}-large")
    monkeypatch.setenv("LAB_HOST", "lab.example")
    monkeypatch.setenv("LAB_MODEL", "llama")
    assert (entry.resolved().base_url, entry.resolved().model) == ("https://lab.example/v1", "llama-large")
    monkeypatch.setenv("LAB_HOST", f"me:{KEY}@lab.example")
    with pytest.raises(BackendError, match="'mine' can't be used: base_url: must hold no user") as raised:
        entry.resolved()
    assert KEY not in str(raised.value)
    monkeypatch.delenv("LAB_HOST")
    with pytest.raises(BackendError, match="'mine' needs the environment variable LAB_HOST"):
        chat_model(entry)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    entry = backend(api_key_env="LAB_KEY")
    if value is None:
        monkeypatch.delenv("LAB_KEY", raising=False)
    else:
        monkeypatch.setenv("LAB_KEY", value)
    assert not entry.key_is_set
    with pytest.raises(BackendError, match="'mine' needs an API key in the environment variable LAB_KEY"):
        chat_model(entry)


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LAB_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with LoopbackServer([say("Hello"), error(401, f"Incorrect API key provided: {KEY}.")]) as server:
        model = chat_model(server.backend(api_key_env="LAB_KEY"))
        model.invoke("Hello")
        with pytest.raises(BackendError, match=r"check the API key in LAB_KEY") as raised:
            model.invoke("Hello")
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{raised.value} {model!r} {model} {caplog.text}"
    assert "Incorrect API key provided: (the key)" in str(raised.value)


def test_azure_has_its_own_address_and_key_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEY", KEY)
    with LoopbackServer([say("Hello")]) as server:
        entry = server.backend(
            base_url=server.base_url.removesuffix("/v1"),
            deployment="my-gpt",
            api_version="2024-10-21",
            api_key_env="LAB_KEY",
            output_limit_name="max_completion_tokens",
        )
        assert chat_model(entry).invoke("Hello").text == "Hello"
    (request,) = server.requests
    assert request.path == "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"
    assert request.headers["api-key"] == KEY
    assert (request.body["max_completion_tokens"], "max_tokens" in request.body) == (2048, False)


def test_every_request_holds_the_fields_of_the_backend() -> None:
    with LoopbackServer([say("Hello")]) as server:
        chat_model(server.backend(extra_body={"thinking": {"type": "disabled"}}, stream_usage=False)).invoke("Hello")
    body = server.requests[0].body
    assert (body["thinking"], body["max_tokens"], "temperature" in body) == ({"type": "disabled"}, 2048, False)


def test_other_makers_models_never_take_the_responses_api() -> None:
    """langchain-openai would choose it by the name of the model."""
    with LoopbackServer(itertools.repeat(say("Hello"))) as server:
        for name in ("gpt-5.6-sol-finetune", "my-codex", "gpt-6-luna"):
            chat_model(server.backend(model=name)).bind_tools([Backend]).invoke("Hello")
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}


def test_watching_sees_the_retries_and_can_stop_them() -> None:
    sent: list[int] = []

    def watch() -> None:
        if len(sent) == 2:
            raise BackendError("enough")
        sent.append(1)

    with LoopbackServer(itertools.repeat(error(500))) as server:
        model = chat_model(server.backend())
        with watch_requests(watch), pytest.raises(BackendError, match="enough"):
            model.invoke("Hello")
        assert (len(sent), len(server.requests)) == (2, 2)
        with pytest.raises(BackendError, match="fault of its own"):
            model.invoke("Hello")
    assert (len(sent), len(server.requests)) == (2, 5)


def test_a_wrong_address_is_told_sooner_than_a_slow_model() -> None:
    seen: list[dict[str, float]] = []
    with LoopbackServer([say("Hello")] * 2) as server:
        _http_client().event_hooks["request"].append(lambda request: seen.append(request.extensions["timeout"]))
        try:
            for seconds in (120, 3):
                chat_model(server.backend(timeout_s=seconds)).invoke("Hello")
        finally:
            _http_client().event_hooks["request"].pop()
    assert [(limits["connect"], limits["read"]) for limits in seen] == [(10, 120), (3, 3)]


def test_the_openai_account_is_not_told_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-the-hospital")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-the-hospital")
    with LoopbackServer([say("Hello")]) as server:
        chat_model(server.backend()).invoke("Hello")
    assert "of-the-hospital" not in str(server.requests[0].headers)


def test_cost_is_the_list_price() -> None:
    priced = backend(input_price=2.5, output_price=10, price_source="the test, 2026-11-01")
    assert priced.cost_usd(1_000_000, 100_000) == pytest.approx(3.5)
    assert backend().cost_usd(1, 1) is None


def test_an_entry_is_frozen() -> None:
    with pytest.raises(ValidationError):
        backend().model = "another"  # type: ignore[misc]


LEAVING = """
from agent.backends import chat_model
from tests.agent.loopback import LoopbackServer, say

server = LoopbackServer([say("Hello")]).__enter__()
chat_model(server.backend()).invoke("Hello")
server.__exit__(None, None, None)
"""


def test_no_connection_is_left_open_when_the_process_ends() -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", LEAVING]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=True)
    assert "ResourceWarning" not in done.stderr, done.stderr
