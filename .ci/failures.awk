# Lists what failed in the output of the test runner (TAP 14, subtests indented by four): first one
# line per failure, its file and the names it stands under, then up to 30 lines of diagnostics each.
# Prints at most `max` lines of those. Every `not ok` whose own subtests failed only repeats them.

function push(line) {
  if (lines[failures] < 30) detail[failures, ++lines[failures]] = line
}

{ gsub(/\033\[[0-9;]*m/, "") }

match($0, /^ *# Subtest: /) {
  depth = (match($0, /#/) - 1) / 4
  name[depth] = substr($0, depth * 4 + 12)
  for (at = depth; at < 20; at++) failed[at] = 0
  in_diagnostics = 0
  next
}

match($0, /^ *not ok [0-9]+/) {
  depth = (match($0, /n/) - 1) / 4
  in_diagnostics = 0
  if ($0 ~ / # (TODO|SKIP)/) next
  repeats = failed[depth]
  failed[depth] = 0
  for (at = 0; at < depth; at++) failed[at] = 1
  if (repeats) next
  title = $0
  sub(/^ *not ok [0-9]+ *(- )?/, "", title)
  sub(/ # time=.*/, "", title)
  path = ""
  for (at = 0; at < depth; at++) path = path name[at] " > "
  heading[++failures] = path title
  in_diagnostics = 1
  next
}

in_diagnostics {
  if ($0 ~ /^ *\.\.\.$/) in_diagnostics = 0
  # The source is in the repository; the place is told besides.
  else if ($0 ~ /^ *source: /) in_source = match($0, /s/)
  else if (in_source && (match($0, /[^ ]/) > in_source || $0 ~ /^ *$/)) next
  else {
    in_source = 0
    if ($0 !~ /^ *(---|(columnNumber|typeName|isToplevel|stdio|cwd|externalID|command|args): ?.*|- --?[a-z].*)$/) push(substr($0, 1, 200))
  }
}

END {
  if (failures == 0) exit
  printf "\n--- %d failed ---\n", failures
  for (i = 1; i <= failures && i <= 40; i++) print "not ok " heading[i]
  printed = i
  for (i = 1; i <= failures && printed < max; i++) {
    if (!lines[i]) continue
    print "\n" heading[i]
    printed += 2
    for (j = 1; j <= lines[i] && printed < max; j++) {
      print detail[i, j]
      printed++
    }
  }
}
