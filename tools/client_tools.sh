#!/bin/sh
# Makes, in .venv/proof-tools, what generates and compiles clients in other languages, and what calls a server from a shell:
#   grpc-tools   grpcurl, ghz, grpc-health-probe, and Go's plugins of protoc (by go install)
#   protoc       Debian's protoc with the plugins of Java, PHP and Ruby (from apt, unpacked and not installed)
#   java         protobuf's and gRPC's jars, javalite in two versions, and Kotlin's compiler (by Maven)
#   typescript   protobuf-es, connect and the compiler (by npm)
# `client_tools.sh PART...` makes some of them. What cannot be had leaves its reason in NAME.missing, and the proofs say so.
# Done once, it costs nothing.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd -P)
tools=$root/.venv/proof-tools
key="$(cat tools/client_tools.sh tools/clients/pom.xml | cksum) $tools"
mkdir -p "$tools"

made() { # Whether this part was made by these pins, in this place.
  [ "$(cat "$tools/$1.made" 2>/dev/null)" = "$key" ]
}

make_grpc_tools() {
  command -v go >/dev/null 2>&1 || return 1
  for module in github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3 github.com/bojand/ghz/cmd/ghz@v0.120.0 \
    github.com/grpc-ecosystem/grpc-health-probe@v0.4.40 google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.10 \
    google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1; do
    GOBIN=$tools/grpc-tools/bin GOFLAGS=-buildvcs=false go install "$module" >"$tools/go.txt" 2>&1 || { tail -n 3 "$tools/go.txt" >&2; return 1; }
  done
}

# Offline, this is not to wait long.
patience="-o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o Acquire::Retries=1 -o APT::Sandbox::User="

make_protoc() {
  command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || return 1
  rm -rf "$tools/protoc"
  mkdir -p "$tools/protoc/packages"
  (
    cd "$tools/protoc/packages"
    # Debian takes superseded versions away, so that none is pinned here: 3.21.12 is that of Debian 12.
    apt-get -qq $patience download protobuf-compiler libprotoc32 libprotobuf32 libprotobuf-dev protobuf-compiler-grpc \
      protobuf-compiler-grpc-java-plugin libgrpc29 libabsl20220623 libc-ares2 libre2-9 || exit 1
    for package in *.deb; do dpkg-deb --extract "$package" .. || exit 1; done
  ) || return 1
  rm -rf "$tools/protoc/packages"
  ln -s grpc_java_plugin "$tools/protoc/usr/bin/protoc-gen-grpc-java" # as protoc looks for it
  LD_LIBRARY_PATH=$(echo "$tools"/protoc/usr/lib/*-linux-gnu) "$tools/protoc/usr/bin/protoc" --version >/dev/null
}

make_java() {
  command -v mvn >/dev/null 2>&1 && command -v javac >/dev/null 2>&1 || return 1
  rm -rf "$tools/java"
  plugin=org.apache.maven.plugins:maven-dependency-plugin:3.6.1
  mvn -q -B -f tools/clients/pom.xml "$plugin:copy-dependencies" -DoutputDirectory="$tools/java/jars" -DexcludeArtifactIds=protobuf-javalite || return 1
  for version in 3.21.12 3.25.5; do
    mvn -q -B "$plugin:copy" -Dartifact="com.google.protobuf:protobuf-javalite:$version" -DoutputDirectory="$tools/java/lite" || return 1
  done
}

make_typescript() {
  command -v npm >/dev/null 2>&1 || return 1
  rm -rf "$tools/typescript"
  mkdir -p "$tools/typescript"
  npm install --silent --no-audit --no-fund --no-package-lock --ignore-scripts --prefix "$tools/typescript" @bufbuild/protobuf@2.17.0 \
    @bufbuild/protoc-gen-es@2.17.0 @connectrpc/connect@2.3.0 @connectrpc/connect-node@2.3.0 typescript@5.9.3
}

make_part() { # The part, and what it comes from.
  made "$1" && return
  echo "client-tools: $1 ($2)"
  if "make_$(echo "$1" | tr - _)"; then
    rm -f "$tools/$1.missing"
    echo "$key" >"$tools/$1.made"
  else
    echo "what it needs ($2) cannot be had here" >"$tools/$1.missing"
    echo "client-tools: no $1: $(cat "$tools/$1.missing")" >&2
  fi
}

[ $# -gt 0 ] || set -- grpc-tools protoc java typescript
for part in "$@"; do
  case $part in
    grpc-tools) make_part grpc-tools "go and its modules" ;;
    protoc) make_part protoc "Debian's packages, by apt" ;;
    java) make_part java "a JDK, and Maven with its packages" ;;
    typescript) make_part typescript "npm and its packages" ;;
    *) echo "client_tools.sh: there is no part $part" >&2; exit 2 ;;
  esac
done
