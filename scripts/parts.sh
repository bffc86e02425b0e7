# Sourced by scripts/test: runs it part by part and ends with the counts, however it ends.

passed=0 failed=0 skipped=0
part_output=$(mktemp)
trap close EXIT
# An interrupted run has not passed.
trap 'exit 130' INT TERM

# The counts are read from the parts' output, so nothing may change how they print it.
unset PYTEST_ADDOPTS FORCE_COLOR PY_COLORS CARGO_TERM_COLOR

# Adds up the counts in the output of a part: cargo prints a line for each program; pytest, a last
# line; pg_regress, a line for each test, which is TAP from version 16 on. If scripts/test itself is
# a part, its last line has the sums.
tally() {
    awk '
        function add(line,    words, i) {
            for (i = split(line, words, /[ ,;.]+/); i > 1; i--) sum[words[i]] += words[i - 1]
        }
        /^test result: .* finished in [0-9.]+s$/ { add($0) }
        /^(test .* \.\.\. ok|ok [0-9]+) .* ms$/ { sum["passed"]++ }
        /^(test .* \.\.\. FAILED|not ok [0-9]+) .* ms$/ { sum["failed"]++ }
        /^(=+ )?[0-9]+ [a-z]+(, [0-9]+ [a-z]+)* in [0-9.]+s/ { pytest = $0 }
        /^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$/ { pytest = ""; split("", sum); add($0) }
        END {
            add(pytest)
            print sum["passed"] + 0, sum["failed"] + sum["error"] + sum["errors"], sum["skipped"] + sum["ignored"]
        }'
}

# Runs one part, shows its output, and continues if it fails. A part that ends with an error, or
# that ran no test, counts as one failure if it reports none itself.
part() { # NAME COMMAND ...
    local status=0 good bad left_out
    say "$1"
    "${@:2}" 2>&1 | tee "$part_output" || status=$?
    read -r good bad left_out < <(tally <"$part_output")
    if [ "$bad" = 0 ] && { [ "$status" != 0 ] || [ $((good + left_out)) = 0 ]; }; then
        say "$1: failed with exit status $status after $good tests"
        bad=1
    fi
    passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + left_out))
}

# An error between two parts, such as in a build, is a failure, too.
close() {
    local status=$?
    rm -f "$part_output"
    [ "$status" = 0 ] || [ "$failed" != 0 ] || failed=1
    # On a line of its own, even after a line that a crash has cut off.
    printf '\n%s passed, %s failed%s\n' "$passed" "$failed" "$([ "$skipped" = 0 ] || echo ", $skipped skipped")"
    [ "$failed" = 0 ] || exit 1
}
