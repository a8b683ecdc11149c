"""What the model of one agent may want called: tools, and other agents."""

from __future__ import annotations

from collections.abc import Mapping

from celeriac.agents.children import AgentTool
from celeriac.agents.tools import Result, Tool
from celeriac.llm.model import ToolCall, ToolSpec

NOTHING: Mapping[str, AgentTool] = {}


class Toolbox:
    """By the names that the model calls them by."""

    def __init__(self, tools: Mapping[str, Tool], agents: Mapping[str, AgentTool] = NOTHING) -> None:
        self._tools = dict(tools)
        self._agents = dict(agents)
        #: What the model is told of them: made once, and not for each question.
        self.specs: tuple[ToolSpec, ...] = (
            *(tool.spec for tool in self._tools.values()),
            *(agent.spec for agent in self._agents.values()),
        )

    def agent(self, call: ToolCall) -> AgentTool | None:
        """Which agent is asked by it, if it is one."""
        return self._agents.get(call.name)

    def is_idempotent(self, call: ToolCall) -> bool:
        """Also where there is no such tool: nothing happens then."""
        tool = self._tools.get(call.name)
        return tool is None or tool.idempotent

    def needs_approval(self, call: ToolCall) -> bool:
        tool = self._tools.get(call.name)
        return tool is not None and tool.approval

    async def call(self, call: ToolCall) -> Result:
        tool = self._tools.get(call.name)
        if tool is None:
            names = ", ".join((*self._tools, *self._agents))
            return Result(f"there is no tool {call.name}; there are {names or 'none'}", failed=True)
        return await tool.call(call.arguments)
