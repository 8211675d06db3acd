"""What an agent's own program looks like: a client of MCP as its SDK has it, the server's name, no token."""

import asyncio

from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client


async def main() -> None:
    """Look at a ticket, and try to delete it."""
    async with Client(streamable_http_client("https://tickets.data.svc/mcp")) as tickets:
        print("tools:", ", ".join(one.name for one in (await tickets.list_tools()).tools))
        print("found:", (await tickets.call_tool("find_ticket", {"text": "Konrad"})).content[0].text)
        try:
            await tickets.call_tool("delete_ticket", {"number": 12})
        except MCPError as error:
            print("not allowed:", error.error.message)


asyncio.run(main())
