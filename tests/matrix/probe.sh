# SPDX-License-Identifier: BSD-3-Clause
# probe.sh URI [briefly]: what a client sees: flags, sizes, names, contexts, extents, content.
[ -n "$1" ] || exit 0
echo "== info"; nbdinfo --json --no-content "$1" 2>/dev/null || echo "refused"
[ -z "$2" ] || exit 0
echo "== list"; nbdinfo --list --json --no-content "$1" 2>/dev/null || echo "refused"
case $(nbdinfo --size "$1" 2>/dev/null) in
  ???????????*) ;;  # a map takes a request for every 4 GiB
  *) echo "== map"; nbdinfo --map "$1" 2>/dev/null || echo "refused" ;;
esac
echo "== content"; nbdcopy "$1" - 2>/dev/null | head -c 1048576 | sha256sum
