# Passes the output of `cargo test` through and closes it with what each failed test said (a long log is often cut in its
# middle), and one line over all test binaries.
{ print; fflush() }
/^---- .* stdout ----$/ { test = $2; lines = 0; most = 12 }
# What the program said comes after the trace (Drop of Program).
/^the program \(ended: / { lines = 0; most = 21 }
test != "" && /panicked at / { said[++tests] = test }
test != "" && tests && said[tests] != "" && lines < most && !/^----/ && NF {
    if (/^stack backtrace:/) { most = 0; next }
    said[tests] = said[tests] "\n    " substr($0, 1, 2000)
    lines++
}
/^test result: / {
    for (i = 2; i <= NF; i++) {
        if ($i == "passed;") passed += $(i - 1)
        if ($i == "failed;") failed += $(i - 1)
        if ($i == "ignored;") skipped += $(i - 1)
    }
}
END {
    for (i = 1; i <= tests; i++) print "failed: " said[i]
    printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
}
