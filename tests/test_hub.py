"""Uploading to the Hugging Face Hub and loading from it, against a stand-in of its API on this machine."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from click.testing import CliRunner
from PIL import Image

from agents.agent import load_agent
from agents.cli import main
from agents.hub import CARD, OWN, card_of, find_shared, push_to_hub
from ddpm.checkpoints import is_hub_id, load_unet
from ddpm.util.errors import CheckpointError, ConfigError
from skipdiff_env.plan import Plan
from tests.conftest import tiny_unet
from tests.untrained import untrained

TOKEN = "hf_of_a_test"
COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """The stand-in: repositories in memory, one commit each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}

    @property
    def address(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """As much of the API as making a repository, one commit, and downloads need."""

    server: Hub

    def log_message(self, *args: object) -> None:
        """Says nothing."""

    def answer(self, content: object, status: int = 200, **headers: str) -> None:
        """Sends JSON, or bytes as they are."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid username or password."}, 401)
            return
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts[1:] == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self.server.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.answer({"url": f"{self.server.address}/{name}"})
        elif parts[1:] == ["validate-yaml"]:
            self.answer({"errors": [], "warnings": []})
        elif parts[4] == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self.answer({"files": modes})
        elif parts[4] == "commit":
            repository = self.server.repositories["/".join(parts[2:4])]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repository[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"{self.server.address}/{'/'.join(parts[2:4])}/commit/{COMMIT}"
            self.answer({"success": True, "commitUrl": address, "commitOid": COMMIT})

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        repository = self.server.repositories.get(name)
        if repository is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif api and parts[4] == "tree":
            files = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in repository.items()
            ]
            self.answer(files)
        elif api:
            self.answer({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in repository]})
        else:
            content = repository.get("/".join(parts[4:]))
            if content is None:
                self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815  # http.server's name


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The stand-in, running."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder with the run of a net, its agent, the run of another agent, an evaluation and a picture."""
    tiny_unet().save_pretrained(tmp_path / "run" / "checkpoint")
    (tmp_path / "run" / "config.json").write_text(
        json.dumps({"images": ["/home/me"], "loss": "l2", "unet": {}}), encoding="utf-8"
    )
    training = {"env": {"metric": "niqe"}, "evaluation": {"reward": 0.25, "nfe": 13.5}}
    agent = untrained(Plan(10, 10), training=training)
    agent.save(tmp_path / "run" / "checkpoint" / "agent")
    agent.save(tmp_path / "agent-run" / "best")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "table.md").write_text("| method | LPIPS |\n|---|---|\n| ours | 0.1 |\n", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(tmp_path / "film.gif")
    return tmp_path


# A reader of the Hub, whose address huggingface_hub wants to know before it is imported.
SESSION = """
import sys
from agents.cli import main
def skipdiff(*arguments):
    main(arguments, standalone_mode=False)
skipdiff("push-to-hub", "run", "me/net", "--evaluation", "table", "--picture", "film.gif", "--private")
skipdiff("push-to-hub", "agent-run", "me/agent")

import gymnasium, torch
import skipdiff_env
from agents import load_agent
from ddpm.checkpoints import load_unet
from ddpm.nets.unet import UNet
here = load_unet("run/checkpoint").state_dict()
for there in (load_unet("me/net"), UNet.from_pretrained("me/net")):
    torch.testing.assert_close(there.state_dict(), here, rtol=0, atol=0)
for name in ("me/agent", "me/net"):
    weights = load_agent(name).policy.state_dict()
    torch.testing.assert_close(weights, load_agent("agent-run").policy.state_dict(), rtol=0, atol=0)
gymnasium.make("SkipDiff-v0", checkpoint="me/net").reset(seed=0)
skipdiff("upscale", "film.gif", "-o", "large.png", "--checkpoint", "me/net")
skipdiff("upscale", "film.gif", "-o", "other.png", "--checkpoint", "me/net", "--agent", "me/agent")
for name in ("me/nothing", "me/agent"):
    try:
        load_unet(name)
    except Exception as error:
        print("refused:", error)
"""


@pytest.mark.slow
def test_what_is_pushed_loads_by_its_id(hub: Hub, shared: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(shared / "cache")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", SESSION], cwd=shared, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert f"repository: {hub.address}/me/net\n" in result.stdout
    assert "refused: unknown checkpoint 'me/nothing': no such folder, and the Hub did not give it" in result.stdout
    assert "refused: " in result.stdout.splitlines()[-1]  # an agent is no net
    assert (shared / "large.png").read_bytes() == (shared / "other.png").read_bytes()

    net = hub.repositories["me/net"]
    assert set(net) == {
        "README.md", "config.json", "model.safetensors", "film.gif", "agent/config.json", "agent/model.safetensors",
    }  # fmt: skip
    assert hub.private == {"me/net": True, "me/agent": False}
    card = net["README.md"].decode()
    for part in ("library_name: skipdiff", "--checkpoint me/net", "| ours | 0.1 |", "](film.gif)", "| loss | l2 |"):
        assert part in card
    assert "/home/me" not in card
    card = hub.repositories["me/agent"]["README.md"].decode()
    for part in ("mean_reward", 'load_agent("me/agent")', "| nfe | 13.5 |", "S,N = 10,10"):
        assert part in card


def test_a_card_that_somebody_wrote_is_kept(shared: Path) -> None:
    own = shared / "run" / "checkpoint" / "README.md"
    own.write_text("# My net\n\n![](film.gif)\n", encoding="utf-8")
    found = find_shared(shared / "run")
    card = card_of(found, "me/net", "mit", shared / "table", ["film.gif"])
    assert card.startswith(own.read_text(encoding="utf-8"))
    assert "| ours | 0.1 |" in card
    assert card.count("film.gif") == 1


def test_shipped_names_and_folders_that_hold_nothing(shared: Path) -> None:
    shipped = find_shared("natural-x4")
    assert shipped.kind == "checkpoint"
    agents = {name for name in shipped.files if "/" in name}
    assert agents == {f"{agent}/{name}" for agent in ("agent-detail", "agent-paper") for name in (*OWN, CARD)}
    for path, message in ((shared / "table", "no agent in"), (shared / "nowhere", "no such folder")):
        with pytest.raises(CheckpointError, match=message):
            find_shared(path)


@pytest.mark.parametrize("content", ["5", "null", "[1]"])
def test_a_configuration_that_is_no_mapping(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="expected settings by name"):
        find_shared(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repo_id": "net"}, "must be OWNER/NAME, got 'net'"),
        ({"picture": Path("film.doc")}, "the picture must be a file ending in"),
        ({"evaluation": Path("nowhere")}, "holds no table.md"),
        ({}, "no token of the Hugging Face Hub; log in with `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_bad_uploads(shared: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match=message):
        push_to_hub(shared / "agent-run", **{"repo_id": "me/agent", **changes})


def test_a_damaged_card(shared: Path) -> None:
    (shared / "agent-run" / "best" / "README.md").write_bytes(b"# An agent\xff")
    with pytest.raises(ConfigError, match="is damaged, expected text in UTF-8"):
        push_to_hub(shared / "agent-run", "me/agent")


def test_the_hub_refuses(hub: Hub, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong token, and a Hub that cannot be reached, in one line each."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_wrong")
    for address in (hub.address, "http://127.0.0.1:9"):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        result = CliRunner().invoke(main, ["push-to-hub", str(shared / "agent-run"), "me/agent"])
        assert result.exit_code == 2, result.output
        assert "the Hub did not take me/agent" in " ".join(result.output.split())
        assert "Traceback" not in result.output
    assert not hub.repositories


def test_a_revision_of_a_repository(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind an @: a branch, a tag or a commit, of checkpoints and of agents."""
    asked: dict[tuple[str, str | None], list[str]] = {}

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked[name, revision] = allow_patterns
        return str(shared / ("run/checkpoint" if name == "me/net" else "agent-run/best"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name in ("me/net", "me/net@v1.0", "me/net@refs/pr/3"):
        load_unet(name)
    load_agent("me/agent@4f2a")
    assert [*asked] == [("me/net", None), ("me/net", "v1.0"), ("me/net", "refs/pr/3"), ("me/agent", "4f2a")]
    assert all("*.safetensors" in patterns for patterns in asked.values())
    assert is_hub_id("owner/net@v1.0")
    assert not any(is_hub_id(name) for name in ("net@v1.0", "./owner/net@v1", "a/b/c@v1"))
