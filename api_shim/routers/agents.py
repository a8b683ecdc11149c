"""Agents: what may be asked for. For every tenant."""

from __future__ import annotations

from fastapi import APIRouter, Request

from api_shim.auth import Tenant
from api_shim.schemas import AgentOut, AgentsOut
from celeriac.agents.registry import Registry

router = APIRouter(prefix="/v1/agents", tags=["agents"])


@router.get("")
async def list_agents(request: Request, _: Tenant) -> AgentsOut:
    """The agents of this deployment."""
    registry: Registry = request.app.state.registry
    return AgentsOut(
        agents=[
            AgentOut(
                name=agent.name,
                description=agent.description,
                lanes=[str(lane) for lane in agent.lanes],
                max_output_tokens=agent.max_output_tokens,
                queue=agent.queue,
                tools=[path.rpartition(":")[2] for path in agent.tools],
                mcp=list(agent.mcp),
                asks=list(agent.asks),
                hands_over_to=list(agent.hands_over_to),
                split_over=agent.split_over,
                split_to=agent.split_to or None,
            )
            for agent in registry
        ]
    )
