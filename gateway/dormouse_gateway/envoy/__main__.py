"""``python -m dormouse_gateway.envoy``: the gateway's Envoy."""

from dormouse_gateway.envoy.process import main

main()
