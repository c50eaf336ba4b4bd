#!/bin/sh
# Generates the TypeScript client and a proto with options of its own, compiles both strictly, and runs a program of both.
set -eu
. "$(dirname "$0")/prepare.sh"
ln -s "$tools/typescript/node_modules" node_modules
generate TypeScript
protoc -I own --plugin=node_modules/.bin/protoc-gen-es --es_out=gen --es_opt=target=ts,import_extension=js own_options.proto
cat >main.ts <<'TS'
import { create, getOption, toBinary } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { label, OwnSchema } from "./gen/own_options_pb.js";
import { GetHintRequestSchema, SyncService } from "./gen/syncbeat/v1/sync_service_pb.js";

const client = createClient(SyncService, createGrpcTransport({ baseUrl: "http://localhost:1" }));
const bytes = toBinary(GetHintRequestSchema, create(GetHintRequestSchema, { deviceId: "phone" }));
console.log(getOption(OwnSchema.field.name, label), label.number, bytes.length, typeof client.getHint);
TS
echo '{"type": "module"}' >package.json
node_modules/.bin/tsc --strict --target es2022 --module nodenext --moduleResolution nodenext \
  --skipLibCheck --preserveSymlinks --outDir out main.ts
[ "$(node --preserve-symlinks out/main.js)" = "name 50002 7 function" ]
