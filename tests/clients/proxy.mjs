// Passes requests on to a server with the token that it wants, for clients that cannot send one. Prints its address.

import http from "node:http";

const { MCP_URL, MCP_TOKEN } = process.env;
const upstream = new URL(MCP_URL);

const server = http.createServer((request, response) => {
  const headers = { ...request.headers, authorization: `Bearer ${MCP_TOKEN}` };
  // A page of the proxy's address is none of the server's.
  const ours = `:${server.address().port}`;
  for (const name of ["host", "origin"]) headers[name] &&= headers[name].replace(ours, `:${upstream.port}`);
  const { method, url: path } = request;
  const onward = http.request({ host: upstream.hostname, port: upstream.port, method, path, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
  });
  onward.on("error", () => response.destroy());
  response.on("close", () => onward.destroy());
  request.pipe(onward);
});
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}${upstream.pathname}`));
process.stdin.resume().on("end", () => process.exit(0));
