#!/usr/bin/env bash
# Runs bazel with no network: `scripts/bazel_offline.sh build //...`, in the place of `bazel build //...`.
#
# For Debian's bazel 4.2.3 (`apt-get install bazel-bootstrap bazel-rules-java bazel-rules-proto`). It
# would download four repositories that even a workspace of Python rules alone refers to. Debian's
# packages bring two of them, the rules of Java and of protocol buffers; the other two are replaced:
# rules_cc by the rules that bazel has in itself, and the coverage tools, which nothing here runs, by
# an empty target. Both are written into a folder of bazel's cache.
set -euo pipefail

rules=${BAZEL_RULES:-/usr/share/bazel/rules}
packages="bazel-bootstrap bazel-rules-java bazel-rules-proto"
if [ $# -eq 0 ]; then
  echo "bazel_offline.sh: expected bazel's command, such as: $0 build //..." >&2
  exit 2
fi
if ! command -v bazel >/dev/null || [ ! -d "$rules/java" ] || [ ! -d "$rules/proto" ]; then
  echo "bazel_offline.sh: expected bazel and $rules, found none: apt-get install $packages" >&2
  exit 127
fi

replaced=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/bazel/keras_metamix_offline
mkdir -p "$replaced/rules_cc/cc" "$replaced/remote_coverage_tools"

write() { # a file that has the text already keeps its date, or bazel would begin anew
  local text
  text=$(cat)
  [ -f "$1" ] && [ "$(cat "$1")" = "$text" ] || printf '%s\n' "$text" >"$1"
}

for file in rules_cc/WORKSPACE rules_cc/BUILD rules_cc/cc/BUILD remote_coverage_tools/WORKSPACE; do
  write "$replaced/$file" </dev/null
done
write "$replaced/remote_coverage_tools/BUILD" <<'BZL'
filegroup(name = "coverage_report_generator", visibility = ["//visibility:public"])
BZL
write "$replaced/rules_cc/cc/defs.bzl" <<'BZL'
cc_binary = native.cc_binary
cc_flags_supplier = None
cc_host_toolchain_alias = native.cc_host_toolchain_alias
cc_import = native.cc_import
cc_libc_top_alias = native.cc_libc_top_alias
cc_library = native.cc_library
cc_test = native.cc_test
cc_toolchain = native.cc_toolchain
cc_toolchain_alias = native.cc_toolchain_alias
cc_toolchain_suite = native.cc_toolchain_suite
compiler_flag = None
fdo_prefetch_hints = native.fdo_prefetch_hints
fdo_profile = native.fdo_profile
objc_import = native.objc_import
objc_library = native.objc_library
propeller_optimize = native.propeller_optimize
BZL

command=$1
shift
exec bazel "$command" \
  --override_repository=rules_cc="$replaced/rules_cc" \
  --override_repository=remote_coverage_tools="$replaced/remote_coverage_tools" \
  --override_repository=rules_java="$rules/java" \
  --override_repository=rules_proto="$rules/proto" \
  "$@"
