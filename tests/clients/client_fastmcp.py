"""FastMCP's client."""

import asyncio

import scenario
from fastmcp import Client
from fastmcp.client.transports import StdioTransport


async def main():
    server = StdioTransport(**scenario.SERVER, keep_alive=False)
    async with Client(server) as client:

        async def call(tool, arguments, on_progress=None):
            result = await client.call_tool(
                tool, arguments, progress_handler=on_progress, raise_on_error=False
            )
            return scenario.unpack(result.is_error, result.structured_content, result.content)

        await scenario.use(client.list_tools, call)


asyncio.run(main())
