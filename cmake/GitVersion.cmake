# Writes OUTPUT with the commit of SOURCE (empty outside a git checkout); touches it only when it changes.
execute_process(COMMAND git -C "${SOURCE}" describe --always --dirty --abbrev=12 --exclude=*
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
file(CONFIGURE OUTPUT "${OUTPUT}" CONTENT "#define SPARSEATTN_GIT_COMMIT \"${commit}\"\n")
