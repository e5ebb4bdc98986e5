"""The fork manager: applies an ordered patch series to a released sglang and builds the fork.

Knows git, patches and wheels. Never imports torch, sglang or ``ada_dsa``.
"""
