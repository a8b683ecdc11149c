"""The agents of a deployment come from a file; a wrong one is refused with the line and the reason."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from celeriac.agents.agent import McpServer
from celeriac.agents.children import AgentTool
from celeriac.agents.registry import MOST_DESCRIPTION, Registry, _AgentTable, read_agents
from celeriac.agents.tools import DESCRIPTION_LENGTH
from celeriac.errors import Invalid, Misconfigured, NotFound
from celeriac.gate.lanes import Caps
from celeriac.llm.model import Endpoint, Lane
from celeriac.llm.shape import closed
from celeriac.settings import MAX_JOB_USD, SHIPPED_AGENTS
from tests.processes import ROOT

GOOD = '[agents.writer]\ndescription = "Writes."\nlanes = ["openai/gpt-5.4", "anthropic/claude-haiku-5-5"]\n'
SPLITS = 'split_over = 5000\nsplit_to = "reader"\n'


def registry(tmp_path: Path, text: str) -> Registry:
    file = tmp_path / "agents.toml"
    file.write_text(text)
    return read_agents(file)


def test_lanes_have_caps(tmp_path: Path) -> None:
    """What the operator allows a minute."""
    text = GOOD + '[lanes."openai/gpt-5.4"]\nrequests_per_minute = 500\n[lanes."anthropic/x"]\ntokens_per_minute = 9\n'
    assert registry(tmp_path, text).caps == {
        Lane("openai", "gpt-5.4"): Caps(requests=500),
        Lane("anthropic", "x"): Caps(tokens=9),
    }


def test_a_deployment_has_providers_of_its_own(tmp_path: Path) -> None:
    """Whoever speaks like OpenAI or Anthropic. Keys are not in the file, which says where they are."""
    text = (
        GOOD.replace("openai/", "together/")
        + '[providers.together]\nbase_url = "https://api.together.xyz/v1"\napi_key_env = "TOGETHER_API_KEY"\n'
        + "stream_options = false\nstores = true\n"
        + '[providers.local]\napi = "anthropic"\nbase_url = "http://127.0.0.1:8081"\n'
    )
    known = registry(tmp_path, text)
    assert known.providers == {
        "together": Endpoint(
            "openai", "https://api.together.xyz/v1", "TOGETHER_API_KEY", asks_for_usage=False, stores=True
        ),
        "local": Endpoint("anthropic", "http://127.0.0.1:8081"),
    }
    for model in (None, "openai/x", "anthropic/x", "together/meta/llama", "local/x"):
        known.check_model(known["writer"], model)
    for model in ("groq/x", "scripted/x"):
        with pytest.raises(Invalid, match="no such provider") as caught:
            known.check_model(known["writer"], model)
        assert caught.value.remedy.endswith("openai, anthropic, together, local")


LOCAL = '[providers.local]\napi = "anthropic"\nbase_url = "http://127.0.0.1:8081"\n'


def test_a_temperature_above_one_is_for_those_who_take_it(tmp_path: Path) -> None:
    """Whoever speaks Anthropic's API takes none: neither an agent's lane nor the model of a job may be such a one."""
    warm = registry(tmp_path, GOOD.replace(', "anthropic/claude-haiku-5-5"', "") + "temperature = 1.5\n" + LOCAL)
    warm.check_model(warm["writer"], "openai/gpt-5-mini")
    for model in ("anthropic/x", "local/x"):
        with pytest.raises(Invalid, match=r"at most 1, and writer has 1\.5") as caught:
            warm.check_model(warm["writer"], model)
        assert caught.value.field == "model"
    mild = registry(tmp_path, GOOD + "temperature = 1.0\n" + LOCAL)
    mild.check_model(mild["writer"], "local/x")


def test_an_agent_that_others_ask_is_described_as_shortly_as_a_tool(tmp_path: Path) -> None:
    """With what stands before it, providers take it. A longer one is refused at the start, unless nobody asks it."""
    long = GOOD.replace("Writes.", "x" * MOST_DESCRIPTION)
    agent = registry(tmp_path, long + 'asks = ["writer"]\nhands_over_to = ["writer"]\n')["writer"]
    for hands_over in (False, True):
        assert len(AgentTool(agent, hands_over=hands_over).spec.description) <= DESCRIPTION_LENGTH
    longer = long.replace("xx", "xxx", 1)
    registry(tmp_path, longer)
    for key in ("asks", "hands_over_to"):
        with pytest.raises(
            Misconfigured, match=r"toml:2: agents\.writer\.description: it has 901 .* boss .* at most 900"
        ):
            registry(tmp_path, longer + GOOD.replace("writer", "boss") + f'{key} = ["writer"]\n')


def test_a_deployment_has_mcp_servers(tmp_path: Path) -> None:
    """Children of the worker, or far away. What they are is not looked at before a worker starts; no secret is in the
    file, which says where they are."""
    text = (
        GOOD
        + 'mcp = ["shop", "far", "shop"]\n[mcp.shop]\ncommand = ["uvx", "shop-server"]\nenvironment = ["SHOP_KEY"]\n'
        + 'tools = ["find", "cancel"]\nidempotent = ["find"]\napproval = ["cancel"]\n'
        + '[mcp.far]\nurl = "https://mcp.example.com/mcp"\ntoken_env = "FAR_TOKEN"\ntimeout_seconds = 5\n'
    )
    known = registry(tmp_path, text)
    assert known["writer"].mcp == ("shop", "far")
    assert known.mcp == {
        "shop": McpServer(
            "shop",
            command=("uvx", "shop-server"),
            environment=("SHOP_KEY",),
            tools=frozenset({"find", "cancel"}),
            idempotent=frozenset({"find"}),
            approval=frozenset({"cancel"}),
        ),
        "far": McpServer(
            "far", url="https://mcp.example.com/mcp", token_variable="FAR_TOKEN", timeout=timedelta(seconds=5)
        ),
    }


@pytest.mark.parametrize(("document", "number"), [("docs/providers.md", 2), ("docs/agents.md", 5)])
def test_what_the_documents_write_into_the_file_is_taken(tmp_path: Path, document: str, number: int) -> None:
    """Each block as it stands there."""
    blocks = re.findall(r"^( *)```toml\n(.*?)```", (ROOT / document).read_text(), re.M | re.S)
    assert len(blocks) == number
    for indent, block in blocks:
        registry(tmp_path, GOOD + block.replace(f"\n{indent}", "\n").removeprefix(indent))


def test_the_documents_name_each_key_of_an_agent_and_its_default() -> None:
    """In one table."""
    section = (ROOT / "docs/agents.md").read_text().split("## All keys of an agent\n")[1].split("\n\n")[0]
    documented: dict[str, str] = {}
    for row in section.splitlines()[2:]:
        keys, default, said = (cell.strip() for cell in row.strip("|").split("|"))
        assert said, row
        documented |= dict.fromkeys(re.findall(r"`(\w+)`", keys), default)
    known: dict[str, str] = {}
    for key, of in _AgentTable.model_fields.items():
        value = of.default
        text = "none" if value in (None, []) else f'`"{value}"`' if isinstance(value, str) else f"{value}".lower()
        known[key] = "" if of.is_required() else text
    of_others = {"temperature": "the provider's", "max_cost_usd": f'`CELERIAC_COSTS__MAX_JOB_USD`, `"{MAX_JOB_USD}"`'}
    assert documented == known | of_others


def test_the_shipped_agents_are_useful_as_they_are() -> None:
    """Each says what it does and falls back to another provider."""
    agents = {agent.name: agent for agent in read_agents(SHIPPED_AGENTS)}
    assert {"assistant", "summariser", "part-summariser", "extractor"} <= agents.keys()
    for agent in agents.values():
        assert agent.description
        assert agent.instructions
        assert len({lane.provider for lane in agent.lanes}) == 2


def test_the_extractors_shape_is_one_that_every_provider_takes_as_it_is() -> None:
    """Closed objects, whose properties are all there: what Anthropic's dialect and OpenAI's strict one can say."""
    schema = read_agents(SHIPPED_AGENTS)["extractor"].output_schema
    assert schema is not None
    assert closed(schema) == schema
    fact = schema["properties"]["facts"]["items"]
    for shape in (schema, fact):
        assert shape["additionalProperties"] is False
        assert shape["required"] == list(shape["properties"])
    assert fact["required"] == ["name", "value", "quote"]


def test_a_file_becomes_agents(tmp_path: Path) -> None:
    """With defaults where it says nothing."""
    agent = registry(tmp_path, GOOD + 'timeout_seconds = 2.5\nqueue = "slow"\napi = "responses"\n')["writer"]
    assert agent.lanes == (Lane("openai", "gpt-5.4"), Lane("anthropic", "claude-haiku-5-5"))
    assert (agent.timeout, agent.queue, agent.api, agent.max_output_tokens, agent.stored) == (
        timedelta(seconds=2.5), "slow", "responses", 1024, False,
    )  # fmt: skip
    assert registry(tmp_path, GOOD + "stored = true\n")["writer"].stored


def test_an_unknown_agent_names_those_that_there_are(tmp_path: Path) -> None:
    """The remedy is in the error."""
    with pytest.raises(NotFound) as raised:
        registry(tmp_path, GOOD)["nobody"]
    assert raised.value.remedy == "use one of: writer"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "names no agent"),
        ("[agents]\n", 1, "names no agent"),
        ("[agents.a\n", 1, "Expected"),
        (GOOD + 'stored = "yes"\n', 4, r"agents\.writer\.stored: Input should be a valid boolean"),
        ("\n[agent.a]\n" + GOOD, 2, r"no table \[agent\]"),
        ("\n\n[agents.a]\nlanes = ['openai/x']\n", 3, r"agents\.a\.description: Field required"),
        (GOOD + "\nmax_words = 5\n", 5, "no such key; known are description, instructions"),
        (GOOD.replace("openai/gpt-5.4", "gpt-5.4"), 3, r"agents\.writer\.lanes\.0: not a lane"),
        (GOOD.replace('["openai/gpt-5.4", "anthropic/claude-haiku-5-5"]', "[]"), 3, "at least 1 item"),
        (GOOD + "max_output_tokens = 0\n", 4, "greater than 0"),
        (GOOD + 'max_output_tokens = "5"\n', 4, "valid integer"),
        (GOOD + "temperature = 3\n", 4, "less than or equal to 2"),
        (
            GOOD + "temperature = 1.1\n",
            4,
            r"agents\.writer\.temperature: anthropic/claude-haiku-5-5 takes at most 1; lower it, or leave",
        ),
        (
            GOOD.replace("anthropic/", "local/") + "temperature = 1.1\n" + LOCAL,
            4,
            r"agents\.writer\.temperature: local/claude-haiku-5-5 takes at most 1",
        ),
        (GOOD + '[agents."a b"]\n', 4, "no name for an agent"),
        (GOOD + '[lanes."gpt-5.4"]\n', 4, "'gpt-5.4' is not a lane"),
        (GOOD + '[lanes."openai/x"]\nrequests_per_second = 3\n', 5, "known are requests_per_minute, tokens_per_minute"),
        (
            GOOD + '[lanes."openai/x"]\ntokens_per_minute = 0\n',
            5,
            r"lanes\.openai/x\.tokens_per_minute: .*greater than 0",
        ),
        ("lanes = 3\n" + GOOD, 1, "lanes are tables"),
        (GOOD + '[lanes."openai/x"]\n', 4, "lanes.openai/x: it allows nothing"),
        (GOOD + 'asks = ["nobody"]\n', 4, r"agents\.writer\.asks: there is no agent 'nobody'; there are writer"),
        (GOOD + 'split_to = "writer"\n', 4, r"agents\.writer\.split_to: it says nothing without split_over"),
        (GOOD + "split_over = 5000\n", 4, r"agents\.writer\.split_over: it says nothing without split_to"),
        (
            GOOD + 'split_to = "nobody"\nsplit_over = 5000\n',
            4,
            r"split_to: there is no agent 'nobody'; there are writer",
        ),
        (GOOD + 'split_over = 5000\nsplit_to = "writer"\n', 5, r"split_to: .* in a circle: writer -> writer"),
        (
            GOOD + SPLITS + GOOD.replace("writer", "reader") + SPLITS.replace("reader", "writer"),
            5,
            r"agents\.writer\.split_to: .*: writer -> reader -> writer\n.*:10: .*: reader -> writer -> reader",
        ),
        (GOOD + 'split_over = 999\nsplit_to = "writer"\n', 4, "greater than or equal to 1000"),
        (GOOD + 'split_over = 1_000_001\nsplit_to = "writer"\n', 4, "less than or equal to 1000000"),
        (GOOD + '[lanes."opnai/x"]\ntokens_per_minute = 5\n', 4, "lanes.opnai/x: there is no provider 'opnai'"),
        (GOOD + "[providers.local]\n", 4, r"providers\.local\.base_url: Field required"),
        (GOOD + "[providers.local]\nbase_url = 'localhost'\n", 5, "does not begin with http://, https://"),
        (
            GOOD + "[providers.local]\nbase_url = 'http://x'\napi_key = 'sk-1'\n",
            6,
            "known are api, base_url, api_key_env",
        ),
        (GOOD + "[providers.openai]\nbase_url = 'http://x'\n", 4, "'openai' is no name for a provider of yours"),
        (
            GOOD.replace("anthropic/", "antropic/"),
            3,
            r"there is no provider 'antropic'; add \[prov",
        ),
        (GOOD + 'tools = ["find"]\n', 4, r"agents\.writer\.tools\.0: not a tool; write module:function"),
        (GOOD + 'mcp = ["shop"]\n', 4, r"agents\.writer\.mcp: there is no MCP server 'shop'; add \[mcp\.shop\]$"),
        (
            GOOD + 'mcp = ["shap"]\n[mcp.shop]\nurl = "http://x"\n',
            4,
            r"'shap'; add \[mcp\.shap\], or use one of: shop",
        ),
        (GOOD + "[mcp.shop]\n", 4, r"mcp\.shop: give it either a command, .* or a url"),
        (GOOD + '[mcp.shop]\ncommand = ["x"]\nurl = "http://x"\n', 4, "either a command"),
        (GOOD + "[mcp.shop]\ncommand = []\n", 5, r"mcp\.shop\.command: .*at least 1 item"),
        (GOOD + '[mcp.shop]\ncommand = "uvx server"\n', 5, r"mcp\.shop\.command: .*valid list"),
        (GOOD + '[mcp.shop]\nurl = "x"\n', 5, "does not begin with http://, https://"),
        (GOOD + "[mcp.Shop]\n", 4, "'Shop' is no name for an MCP server"),
        (
            GOOD + '[mcp.shop]\ncommand = ["x"]\ntoken_env = "T"\n',
            6,
            r"mcp\.shop\.token_env: a token is sent to a url",
        ),
        (
            GOOD + '[mcp.shop]\nurl = "http://x"\nenvironment = ["T"]\n',
            6,
            r"mcp\.shop\.environment: variables are handed to a command",
        ),
        (
            GOOD + '[mcp.shop]\ncommand = ["x"]\nenvironment = ["A=b"]\n',
            6,
            r"mcp\.shop\.environment\.0: not the name of an environment variable",
        ),
        (
            GOOD + '[mcp.shop]\ncommand = ["x"]\ntools = ["find"]\napproval = ["cancel"]\n',
            7,
            r"mcp\.shop\.approval: 'cancel' is not one of its tools",
        ),
        (GOOD + '[mcp.writer]\ncommand = ["x"]\ntoken = "secret"\n', 6, "known are command, url, environment"),
        (
            GOOD + 'instructions = """\nlanes = no\ntemperature = 3\n"""\ntemperature = 3\n',
            8,
            "less than or equal to 2",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_the_line_and_the_reason(tmp_path: Path, text: str, line: int, said: str) -> None:
    """`file:line: reason`, so that an editor can jump to it."""
    with pytest.raises(Misconfigured, match=rf"agents\.toml:{line}: .*{said}"):
        registry(tmp_path, text)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    """Not one start a mistake."""
    with pytest.raises(Misconfigured) as raised:
        registry(tmp_path, GOOD + "max_words = 5\ntemperature = 3\n[agents.b]\nlanes = []\n")
    assert len(str(raised.value).splitlines()) == 4


def test_a_file_that_is_not_there_names_the_setting(tmp_path: Path) -> None:
    """The operator learns what to change."""
    with pytest.raises(Misconfigured, match="CELERIAC_AGENTS_FILE"):
        read_agents(tmp_path / "none.toml")
