// A gateway on Node and `ws`, written the plain way: JSON.parse for each frame,
// and JSON.stringify for each recipient of a broadcast, as the gateway does
// that Trunkline's protocol comes from. It keeps no log and checks no limits.
//
//     node server.js TOKEN

"use strict";

const http = require("node:http");
const { WebSocketServer } = require("ws");

const token = process.argv[2];
if (!token) {
  console.error("usage: node server.js TOKEN");
  process.exit(2);
}

const sessions = new Map(); // id -> { members: Set, seq }
const agents = new Map(); // capability -> client
const requests = new Map(); // our requestId -> { asker, id }
let clientsSoFar = 0;
let framesSoFar = 0;
let requestsSoFar = 0;

function send(client, message) {
  client.socket.send(JSON.stringify(message));
}

function reply(client, message, type, payload) {
  send(client, {
    type,
    id: `g${++framesSoFar}`,
    sessionId: message.sessionId,
    payload,
    timestamp: Date.now(),
    replyTo: message.id,
  });
}

function broadcastToSession(session, message, sender) {
  for (const member of session.members) {
    if (member !== sender) send(member, message);
  }
}

function sessionFor(sessionId) {
  let session = sessions.get(sessionId);
  if (!session) {
    session = { members: new Set(), seq: 0 };
    sessions.set(sessionId, session);
  }
  return session;
}

const handlers = {
  ping(client, message) {
    reply(client, message, "pong", { clientId: client.id });
  },

  connect(client, message) {
    const { deviceId, role } = message.payload;
    client.from = { clientId: client.id, userId: "owner", role, kind: "user", deviceId };
    reply(client, message, "hello_ok", {
      paired: false,
      authRequired: false,
      protocolVersion: 1,
      clientId: client.id,
    });
  },

  session_create(client, message) {
    const { sessionId } = message.payload;
    const session = sessionFor(sessionId);
    session.members.add(client);
    client.sessions.add(session);
    reply(client, message, "session_info", {
      sessionId,
      status: "joined",
      memberCount: session.members.size,
    });
  },

  chat(client, message) {
    const session = sessionFor(message.sessionId);
    const seq = ++session.seq;
    const stored = {
      type: "chat",
      id: message.id,
      sessionId: message.sessionId,
      payload: message.payload,
      timestamp: Date.now(),
      from: client.from,
      seq,
      addressed: [],
    };
    broadcastToSession(session, stored, client);
    reply(client, message, "ack", {
      sessionId: message.sessionId,
      seq,
      epoch: "e1",
      durability: "memory",
      runs: [],
    });
  },

  agent_register(client, message) {
    for (const tool of message.payload.capabilities.tools) agents.set(tool, client);
    reply(client, message, "agent_registered", {
      agentId: message.payload.id,
      generation: 1,
      leaseMs: 60000,
      runs: [],
      requests: [],
    });
  },

  route_request(client, message) {
    const agent = agents.get(message.payload.capability);
    if (!agent) {
      reply(client, message, "error", { code: "AGENT_NOT_FOUND" });
      return;
    }
    const requestId = (++requestsSoFar).toString(16).padStart(32, "0");
    requests.set(requestId, { asker: client, id: message.id });
    send(agent, {
      type: "route_request",
      id: `g${++framesSoFar}`,
      payload: {
        requestId,
        capability: message.payload.capability,
        method: null,
        params: message.payload.params,
        stream: false,
        deadline: Date.now() + 60000,
        chain: [],
      },
      timestamp: Date.now(),
      from: client.from,
    });
  },

  route_response(client, message) {
    const request = requests.get(message.payload.requestId);
    if (!request) return;
    if (message.payload.done) requests.delete(message.payload.requestId);
    send(request.asker, {
      type: "route_response",
      id: `g${++framesSoFar}`,
      payload: message.payload,
      timestamp: Date.now(),
      replyTo: request.id,
      from: client.from,
    });
  },
};

function onMessage(client, data) {
  const message = JSON.parse(data.toString());
  const handler = handlers[message.type];
  if (handler) handler(client, message);
  else reply(client, message, "error", { code: "UNKNOWN_TYPE" });
}

function onClose(client) {
  for (const session of client.sessions) session.members.delete(client);
  for (const [capability, agent] of agents) if (agent === client) agents.delete(capability);
}

function onConnection(socket) {
  const client = { id: `c${++clientsSoFar}`, socket, from: null, sessions: new Set() };
  socket.on("message", (data) => onMessage(client, data));
  socket.on("close", () => onClose(client));
  socket.on("error", () => socket.terminate());
  send(client, {
    type: "session_info",
    id: `g${++framesSoFar}`,
    payload: {
      sessionId: client.id,
      status: "connected",
      authRequired: false,
      protocolVersion: 1,
      challengeNonce: "0123456789abcdef0123456789abcdef",
      limits: { maxMessageSize: 1048576, maxFrameFromGateway: 2097152 },
    },
    timestamp: Date.now(),
  });
}

const server = http.createServer((request, response) => {
  response.writeHead(404).end();
});
const gateway = new WebSocketServer({ noServer: true, perMessageDeflate: false });

server.on("upgrade", (request, socket, head) => {
  const isAllowed = request.headers.authorization === `Bearer ${token}`;
  if (request.url !== "/ws" || !isAllowed) {
    socket.end("HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\n");
    return;
  }
  gateway.handleUpgrade(request, socket, head, onConnection);
});

server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => {
  console.log(`node listening on http://127.0.0.1:${server.address().port}`);
});
