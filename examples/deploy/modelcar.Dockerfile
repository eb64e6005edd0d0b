# KServe runs `sh -c "ln -s … && sleep infinity"` in a modelcar, so the base needs a shell: scratch does not do.
FROM busybox:stable-musl
COPY --chmod=0444 model.wasm /models/model.wasm
