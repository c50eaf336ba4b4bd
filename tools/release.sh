#!/bin/sh
# Makes a release of the version in server/syncbeat_server/__init__.py: builds the source distribution, and the wheel from it, once
# each; tests them as they were built; tags the commit with the version's section of CHANGELOG.md. With --dry-run it takes the
# section "Unreleased", does not mind changes that are not committed, and tags nothing. It uploads and pushes nothing.
set -eu
cd "$(dirname "$0")/.."
here=$(pwd -P)
python=$here/.venv/bin/python
dry=
case "${1:-}" in
  "") ;;
  --dry-run) dry=1 ;;
  *) echo "usage: tools/release.sh [--dry-run]" >&2 && exit 2 ;;
esac

say() { echo "release: $*"; }
die() { echo "release: $*" >&2; exit 1; }

version=$("$python" -c 'import syncbeat_server; print(syncbeat_server.__version__)')
tag=v$version
notes=$("$python" tools/release.py notes ${dry:+--unreleased})
if [ -z "$dry" ]; then
  [ -z "$(git status --porcelain)" ] || die "the working tree has changes that are not committed"
  git rev-parse -q --verify "refs/tags/$tag" >/dev/null && die "the tag $tag is there already: raise the version"
fi

# The same commit gives the same archives.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
work=$(mktemp -d "${TMPDIR:-/tmp}/syncbeat-release-XXXXXX")
trap 'rm -rf "$work"' EXIT
rm -rf dist
"$here/.venv/bin/hatchling" build --target sdist --directory dist >/dev/null
tar -xzf dist/*.tar.gz -C "$work"
(cd "$work"/syncbeat-* && "$here/.venv/bin/hatchling" build --target wheel --directory "$here/dist" >/dev/null)
"$python" tools/release.py check dist

say "the wheel alone, in a new environment: the client"
"$python" -m venv "$work/bare"
"$work/bare/bin/python" -m pip install --quiet --disable-pip-version-check dist/*.whl
cd "$work"
"$work/bare/bin/python" -c 'import syncbeat, syncbeat.blocking'
[ "$("$work/bare/bin/syncbeat-server" --version)" = "$version" ] || die "the wheel's command is of another version"
"$work/bare/bin/syncbeat-server" --help | grep -q healthcheck || die "the client's command does not run"
"$work/bare/bin/syncbeat-server" serve 2>&1 | grep -q 'pip install' || die "the client does not say how to get the service"

say "the wheel with the pinned packages of .venv: the demo's claims"
"$python" -m venv --without-pip "$work/full"
"$python" -m pip --python "$work/full/bin/python" install --quiet --disable-pip-version-check --no-deps --no-index "$here"/dist/*.whl
# A path within a .pth file is searched, but the .pth files in it, the editable installation's among them, are not read.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$(echo "$work"/full/lib/python*/site-packages)/pinned.pth"
found=$("$work/full/bin/python" -c 'import syncbeat_server; print(syncbeat_server.__file__)')
case "$found" in "$work"/full/*) ;; *) die "the demo would run from $found, and not from the wheel" ;; esac
"$work/full/bin/syncbeat-server" demo >"$work/demo.txt" 2>&1 || { cat "$work/demo.txt" >&2; die "the demo failed"; }
tail -n 1 "$work/demo.txt"

cd "$here"
if [ -n "$dry" ]; then
  say "dry run: would tag $(git rev-parse --short HEAD) as $tag, with $(echo "$notes" | grep -c '^- ') entries of CHANGELOG.md"
else
  echo "$notes" | git tag --annotate "$tag" --cleanup=verbatim --file=- HEAD
  say "tagged $tag; to publish: git push origin $tag, and upload dist/"
fi
ls dist
