#!/bin/sh
# Generates the Java client for the lite runtime, compiles it against two versions of that, and runs it on both. Options of
# one's own do not compile there at all.
set -eu
. "$(dirname "$0")/prepare.sh"
generate Java
cat >Main.java <<'JAVA'
import com.syncbeat.v1.GetHintRequest;
import com.syncbeat.v1.SyncServiceGrpc;

public class Main {
  public static void main(String[] arguments) {
    byte[] bytes = GetHintRequest.newBuilder().setDeviceId("phone").build().toByteArray();
    System.out.println(bytes.length + " " + SyncServiceGrpc.SERVICE_NAME);
  }
}
JAVA
for version in 3.21.12 3.25.5; do
  jars=$(echo "$tools"/java/jars/*.jar | tr ' ' ':')
  path="$tools/java/lite/protobuf-javalite-$version.jar:$(echo "$jars" | tr ':' '\n' | grep -v -e protobuf-java -e protobuf-kotlin -e grpc-protobuf-1 -e proto-google | tr '\n' ':')"
  rm -rf "classes-$version" && mkdir "classes-$version"
  find gen -name '*.java' >sources.txt
  javac -nowarn -Xlint:none -proc:none -d "classes-$version" -cp "$path" @sources.txt Main.java 2>javac.txt || { head -n 20 javac.txt >&2; exit 1; }
  [ "$(java -cp "classes-$version:$path" Main)" = "7 syncbeat.v1.SyncService" ]
done
