// The official TypeScript client: the same as scenario.py.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

const require = createRequire(process.env.NODE_PATH + "/");
const load = (path) => import(pathToFileURL(require.resolve(path)));
const { Client } = await load("@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = await load("@modelcontextprotocol/sdk/client/stdio.js");

const image = process.env.MCP_IMAGE;
const deadline = Date.now() + 240_000;
const client = new Client({ name: "test", version: "1" });
await client.connect(new StdioClientTransport(JSON.parse(process.env.MCP_SERVER)));

class ToolError extends Error {}

async function call(name, args, options) {
  const result = await client.callTool({ name, arguments: args }, undefined, options);
  const text = JSON.parse(result.content[0].text);
  if (result.isError) throw Object.assign(new ToolError(text.message), text);
  assert.deepEqual(result.structuredContent, text);
  return text;
}

async function until(line) {
  while ((await call("exec", { name: "w", shell: line })).exit_code !== 0) {
    assert(Date.now() < deadline, line);
    await sleep(200);
  }
}

const names = (await client.listTools()).tools.map((tool) => tool.name);
for (const name of ["run", "exec", "read_file"]) assert(names.includes(name), names.join());
const ran = await call("run", { image, shell: "cat; exit 3", stdin: "grün" });
assert.deepEqual([ran.stdout, ran.exit_code], ["grün", 3]);

await call("create", { image, name: "w" });
const out = await call("exec", { name: "w", command: ["sh", "-c", "echo made > /srv-file; echo out"] });
assert.deepEqual([out.stdout, out.exit_code], ["out\n", 0]);
assert.equal((await call("read_file", { name: "w", path: "/srv-file" })).content, "made\n");

const waiting = { name: "w", shell: "while [ ! -e /go ]; do sleep 0.1; done; echo gone", timeout_s: 600 };
const { promise: progress, resolve: onprogress } = Promise.withResolvers();
const long = call("exec", waiting, { onprogress, resetTimeoutOnProgress: true });
assert.match((await progress).message, /the command runs/);
await call("write_file", { name: "w", path: "/go", content: "" });
assert.equal((await long).stdout, "gone\n");

const abort = new AbortController();
const endless = { name: "w", shell: "touch /begun; exec sleep 4242", timeout_s: 600 };
const cancelled = assert.rejects(call("exec", endless, { signal: abort.signal }));
await until("test -e /begun");
abort.abort();
await cancelled;
await until("! pidof sleep");

for (const [tool, args, kind] of [
  ["run", { image: "registry.example.org/evil", shell: "id" }, "refused"],
  ["exec", { name: "w", shell: "id", command: ["id"] }, "invalid"],
  ["status", { name: "none" }, "not_found"],
]) {
  await assert.rejects(call(tool, args), (error) => error.kind === kind);
}
await call("delete", { name: "w" });
await client.close();
