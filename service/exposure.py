"""Who can reach a server that encrypts nothing: programs on this machine, unless the operator says otherwise.

Does not listen, and knows no certificates.
"""

from service import addresses
from service.config import Config
from service.errors import ConfigError
from service.telemetry import log


def check(settings: Config) -> None:
    """Checks that plain text stays on this machine, or that --insecure allows more, which is logged loudly.

    The addresses have numeric hosts.

    Raises:
        ConfigError: other machines could reach the server, without TLS.
    """
    if settings.tls_cert or addresses.is_loopback(settings.listen):
        return
    has_tokens = bool(settings.tokens or settings.jwt_keys)
    if not settings.insecure:
        raise ConfigError(
            f"--listen: other machines can reach {settings.listen}, and without TLS {_risk(has_tokens)}: give"
            " --tls-cert and --tls-key, or --insecure if only those you trust can reach it"
        )
    log.warning(
        "insecure",
        listen=str(settings.listen),
        means=f"NO TLS: {_risk(has_tokens)}; only a network or a proxy in front can prevent it",
    )


def _risk(has_tokens: bool) -> str:
    on_the_way = "whoever is on the way can read and change everything"
    if has_tokens:
        return f"{on_the_way}, and use the callers' tokens"
    return f"whoever reaches this address can use every session whose id they know, and {on_the_way}"
