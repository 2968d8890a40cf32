"""The methods of the gateway's port, as paths."""

INFERENCE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/"
INFER = f"{INFERENCE}ModelInfer"
STREAM = f"{INFERENCE}ModelStreamInfer"
WATCH = f"{HEALTH}Watch"
ABOUT = (
    "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex",
)  # fmt: skip
UNARY = (INFER, *(f"{INFERENCE}{name}" for name in ABOUT), f"{HEALTH}Check")
"""Every unary one. Envoy holds their messages until they are whole."""
