#!/bin/sh
# Generates the Go client and a proto with options of its own, compiles both into one program, and runs it.
set -eu
. "$(dirname "$0")/prepare.sh"
generate Go
mkdir -p gen/own
protoc -I own --go_out=gen/own --go_opt=paths=source_relative --go-grpc_out=gen/own --go-grpc_opt=paths=source_relative own_options.proto
cat >main.go <<'GO'
package main

import (
	"fmt"

	"example.com/app/gen/own"
	syncbeatv1 "example.com/app/gen/syncbeat/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
)

func main() {
	field := (&own.Own{}).ProtoReflect().Descriptor().Fields().ByName("name")
	label := proto.GetExtension(field.Options(), own.E_Label).(string)
	connection, err := grpc.NewClient("localhost:1", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	client := syncbeatv1.NewSyncServiceClient(connection)
	bytes, err := proto.Marshal(&syncbeatv1.GetHintRequest{DeviceId: "phone"})
	if err != nil {
		panic(err)
	}
	fmt.Println(label, own.E_Label.TypeDescriptor().Number(), len(bytes), client != nil)
}
GO
printf 'module example.com/app\n\ngo 1.24\n\nrequire (\n\tgoogle.golang.org/grpc v1.76.0\n\tgoogle.golang.org/protobuf v1.36.10\n)\n' >go.mod
GOFLAGS=-mod=mod go mod tidy >tidy.txt 2>&1 || { cat tidy.txt >&2; exit 1; }
[ "$(go run .)" = "name 50002 7 true" ]
