"""A certificate authority of the cluster's own, and a kubeconfig for everybody who talks to the API server."""

from collections.abc import Iterable

from dormouse_testing.cluster.layout import API_PORT, API_SERVICE, HOST_IP, Layout, Node
from dormouse_testing.cluster.processes import attempt, run

DAYS = "30"
SUBJECTS = {
    "apiserver": "/CN=kube-apiserver",
    "admin": "/O=system:masters/CN=admin",
    "controllers": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "aggregator": "/CN=aggregator",
}
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: here, cluster: {{server: "https://{host}:{port}", certificate-authority: {pki}/ca.crt}}}}]
users: [{{name: {who}, user: {{client-certificate: {pki}/{who}.crt, client-key: {pki}/{who}.key}}}}]
contexts: [{{name: here, context: {{cluster: here, user: {who}}}}}]
current-context: here
"""


def make(layout: Layout, nodes: Iterable[Node]) -> None:
    """Those that are not there yet or end within a day; a cluster that came down keeps its own for the next time."""
    layout.pki.mkdir(parents=True, exist_ok=True)
    authority = layout.pki / "ca.crt"
    if not (authority.exists() and attempt("openssl", "x509", "-checkend", "86400", "-noout", "-in", authority)):
        layout.remove("pki")
        layout.pki.mkdir(mode=0o700)
        _authority(layout)
    for who, subject in {**SUBJECTS, **{node.name: f"/O=system:nodes/CN=system:node:{node.name}" for node in nodes}}.items():
        if not layout.kubeconfig_of(who).exists():
            _sign(layout, who, subject)
            text = KUBECONFIG.format(host=HOST_IP, port=API_PORT, pki=layout.pki, who=who)
            layout.kubeconfig_of(who).write_text(text)


def _authority(layout: Layout) -> None:
    pki = layout.pki
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", pki / "ca.key", "-out", pki / "ca.crt",
        "-subj", "/CN=dormouse-test-cluster", "-days", DAYS)  # fmt: skip
    run("openssl", "genrsa", "-out", pki / "accounts.key", "2048")
    run("openssl", "rsa", "-in", pki / "accounts.key", "-pubout", "-out", pki / "accounts.pub")
    names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
    addresses = ("127.0.0.1", API_SERVICE, HOST_IP)
    alternatives = [f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses]
    (pki / "extensions").write_text(f"subjectAltName={','.join(alternatives)}\n")


def _sign(layout: Layout, who: str, subject: str) -> None:
    pki = layout.pki
    key, request = pki / f"{who}.key", pki / f"{who}.csr"
    run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", subject)
    run("openssl", "x509", "-req", "-in", request, "-CA", pki / "ca.crt", "-CAkey", pki / "ca.key", "-CAcreateserial", "-days", DAYS,
        "-extfile", pki / "extensions", "-out", pki / f"{who}.crt")  # fmt: skip
    request.unlink()
