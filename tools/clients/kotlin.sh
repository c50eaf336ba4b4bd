#!/bin/sh
# Generates the Kotlin client and a proto with options of its own, compiles both, and runs a program of both.
set -eu
. "$(dirname "$0")/prepare.sh"
generate Kotlin
protoc -I own --java_out=gen --grpc-java_out=gen own_options.proto
jars=$(echo "$tools"/java/jars/*.jar | tr ' ' ':')
cat >Main.kt <<'KOTLIN'
import com.syncbeat.v1.SyncServiceGrpc
import com.syncbeat.v1.getHintRequest
import example.own.v1.OwnOptions

fun main() {
  val field = OwnOptions.Own.getDescriptor().findFieldByName("name")
  val label = field.options.getExtension(OwnOptions.label)
  val request = getHintRequest { deviceId = "phone" }
  println("$label ${OwnOptions.label.number} ${request.serializedSize} ${SyncServiceGrpc.SERVICE_NAME}")
}
KOTLIN
mkdir -p classes
find gen -name '*.java' >sources.txt
javac -nowarn -Xlint:none -proc:none -d classes -cp "$jars" @sources.txt 2>javac.txt || { head -n 20 javac.txt >&2; exit 1; }
java -cp "$jars" org.jetbrains.kotlin.cli.jvm.K2JVMCompiler -nowarn -no-stdlib -no-reflect -jvm-target 11 -cp "classes:$jars" -d classes \
  gen/com/syncbeat/v1 Main.kt >kotlinc.txt 2>&1 || { head -n 20 kotlinc.txt >&2; exit 1; }
[ "$(java -cp "classes:$jars" MainKt)" = "name 50002 7 syncbeat.v1.SyncService" ]
