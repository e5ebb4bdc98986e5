# The released image of sglang, with the fork's wheel in place of stock sglang, and `tool doctor` as its command.
# This file has not been built by the project: it has no container runtime with a GPU. Two things are assumed of
# the released image: `python3` is the interpreter of sglang, in version 3.12, and pip can uninstall sglang.
#
#   tool build --python cp312             (dist/ must hold one wheel of the release)
#   docker build -t sglang-ada .
#   docker run --rm --gpus all sglang-ada
#   docker run --rm --gpus all --ipc=host -p 30000:30000 sglang-ada \
#       python3 -m sglang.launch_server --model-path MODEL --host 0.0.0.0
#
# Another release: tool build --sglang-ref v0.5.22 --python cp312, docker build --build-arg RELEASE=0.5.22.
ARG RELEASE=0.5.23
FROM lmsysorg/sglang:v${RELEASE}
ARG RELEASE

# The tool has an environment of its own: its packages cannot change what sglang runs with.
COPY pyproject.toml README.md LICENSE series.txt series.lock rebase-history.json /opt/ada-dsa/
COPY tool /opt/ada-dsa/tool
COPY ada_dsa /opt/ada-dsa/ada_dsa
COPY patches /opt/ada-dsa/patches
RUN python3 -m venv /opt/tool \
    && /opt/tool/bin/python -m pip install --no-cache-dir --editable /opt/ada-dsa

# The released image links to a source folder of sglang. After the uninstallation nothing imports it, unless
# Python starts in that folder; hence the other working directory.
WORKDIR /root
COPY dist/sglang-${RELEASE}+ada.*.whl /tmp/fork/
RUN python3 -m pip uninstall --yes sglang \
    && python3 -m pip install --no-cache-dir --no-deps /tmp/fork/*.whl \
    && rm -r /tmp/fork \
    && python3 -m pip show --files sglang | grep --quiet attention/ada_dsa/

CMD ["/opt/tool/bin/tool", "doctor", "--python", "python3"]
