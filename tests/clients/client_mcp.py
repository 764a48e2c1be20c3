"""The official Python client, in the era of the protocol that the first argument names."""

import asyncio
import sys

import scenario
from mcp import Client, StdioServerParameters


async def main():
    server = StdioServerParameters(**scenario.SERVER)
    async with Client(server, mode=sys.argv[1]) as client:

        async def list_tools():
            return (await client.list_tools()).tools

        async def call(tool, arguments, on_progress=None):
            result = await client.call_tool(tool, arguments, progress_callback=on_progress)
            return scenario.unpack(result.is_error, result.structured_content, result.content)

        await scenario.use(list_tools, call)


asyncio.run(main())
