"""What each Python client does with a server: the same as scenario.mjs."""

import asyncio
import json
import os

SERVER = json.loads(os.environ["MCP_SERVER"])
IMAGE = os.environ["MCP_IMAGE"]
DEADLINE = 120


class ToolError(Exception):
    """The error that a tool gave."""

    def __init__(self, error):
        super().__init__(json.dumps(error))
        self.kind = error["kind"]


def unpack(is_error, structured, content):
    """The result of a call, or its error."""
    text = json.loads(content[0].text)
    if is_error:
        raise ToolError(text)
    assert structured == text, (structured, text)
    return text


async def until(call, line):
    """Waits until a shell line succeeds in the workspace."""
    async with asyncio.timeout(DEADLINE):
        while (await call("exec", {"name": "w", "shell": line}))["exit_code"] != 0:
            await asyncio.sleep(0.2)


async def use(list_tools, call):
    """Drives a connected client; `call(tool, arguments, on_progress=None)` gives a result or raises ToolError."""
    names = [tool.name for tool in await list_tools()]
    assert {"run", "exec", "read_file"} <= set(names), names
    ran = await call("run", {"image": IMAGE, "shell": "cat; exit 3", "stdin": "grün"})
    assert (ran["stdout"], ran["exit_code"]) == ("grün", 3), ran

    await call("create", {"image": IMAGE, "name": "w"})
    ran = await call("exec", {"name": "w", "command": ["sh", "-c", "echo made > /srv-file; echo out"]})
    assert (ran["stdout"], ran["exit_code"]) == ("out\n", 0), ran
    read = await call("read_file", {"name": "w", "path": "/srv-file"})
    assert (read["content"], read["encoding"]) == ("made\n", "utf-8"), read

    progress = asyncio.Event()

    async def on_progress(done, _total, message):
        assert done > 0 and "the command runs" in message, (done, message)
        progress.set()

    waiting = {"name": "w", "shell": "while [ ! -e /go ]; do sleep 0.1; done; echo gone", "timeout_s": 600}
    long = asyncio.create_task(call("exec", waiting, on_progress))
    async with asyncio.timeout(DEADLINE):
        await progress.wait()
    await call("write_file", {"name": "w", "path": "/go", "content": ""})
    assert (await long)["stdout"] == "gone\n"

    endless = {"name": "w", "shell": "touch /begun; exec sleep 4242", "timeout_s": 600}
    cancelled = asyncio.create_task(call("exec", endless))
    await until(call, "test -e /begun")
    cancelled.cancel()
    try:
        await cancelled
        raise AssertionError("the call was cancelled")
    except asyncio.CancelledError:
        pass
    await until(call, "! pidof sleep")

    for tool, arguments, kind in [
        ("run", {"image": "registry.example.org/evil", "shell": "id"}, "refused"),
        ("exec", {"name": "w", "shell": "id", "command": ["id"]}, "invalid"),
        ("status", {"name": "none"}, "not_found"),
    ]:
        try:
            raise AssertionError(await call(tool, arguments))
        except ToolError as error:
            assert error.kind == kind, error
    await call("delete", {"name": "w"})
