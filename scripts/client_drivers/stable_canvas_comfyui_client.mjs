import { readFileSync, writeFileSync } from "node:fs";
import { Client } from "@stable-canvas/comfyui-client";
import WebSocket from "ws";

const { SERVER, WORKFLOW, RESULT } = process.env;
const client = new Client({ api_host: SERVER.replace("http://", ""), WebSocket, fetch });
client.connect();
const { images } = await client.enqueue(JSON.parse(readFileSync(WORKFLOW)));
const bytes = images[0].type === "buff" ? images[0].data : await (await fetch(images[0].data)).arrayBuffer();
writeFileSync(RESULT, Buffer.from(bytes));
process.exit(0);
