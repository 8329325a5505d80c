//! TLS by rustls, checked as libpq's `sslmode` says.
//!
//! | sslmode | the certificate |
//! |---|---|
//! | allow, prefer, require | is not looked at: nobody listens, but who answers is not known |
//! | verify-ca | must come from a trusted authority |
//! | verify-full | and must name the host |
//!
//! The signature of the handshake is checked in all of them.

use std::sync::Arc;

use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::target::{Roots, Ssl, SslMode};
use crate::error::{Error, Kind, Result, ResultExt};

/// The protocol's name in the handshake (ALPN).
const PROTOCOL: &[u8] = b"postgresql";

const DIRECT: &str =
    "sslnegotiation=direct needs PostgreSQL 17 or newer with ssl = on: leave it out of postgres.url for an older one";

/// Makes TLS connections with one set of trusted authorities.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    /// Without a question before it.
    is_direct: bool,
}

impl Tls {
    /// Reads the certificates that `ssl` names.
    ///
    /// # Errors
    /// [`Kind::Config`] with the file that cannot be used.
    pub(super) fn new(ssl: &Ssl) -> Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Verifier { check: Check::of(ssl)?, provider: Arc::clone(&provider) };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .or_err(Kind::Internal, || "TLS cannot be set up".to_owned())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &ssl.client {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let shown = key.display();
                let private = PrivateKeyDer::from_pem_file(key).map_err(|source| {
                    Error::new(Kind::Config, format!("postgres.url: sslkey: {shown} cannot be read as a private key"))
                        .source(source)
                        .hint("write an unencrypted key in PEM, readable by the user that runs tidelog alone")
                })?;
                config
                    .with_client_auth_cert(certificates("sslcert", certificate)?, private)
                    .or_err(Kind::Config, || {
                        format!("postgres.url: sslcert: {} does not fit its key {shown}", certificate.display())
                    })?
            }
        };
        if ssl.is_direct {
            // Required with it (protocol chapter, "SSL Session Encryption"): a server of another kind does not know it.
            config.alpn_protocols = vec![PROTOCOL.to_vec()];
        }
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), is_direct: ssl.is_direct })
    }

    /// The handshake with the server named `host`.
    pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        socket: S,
        host: &str,
    ) -> Result<TlsStream<S>> {
        let name = ServerName::try_from(host.to_owned())
            .or_err(Kind::Config, || format!("postgres.url: TLS needs a host name or an IP address, not {host:?}"))?;
        let connected = self.connector.connect(name, socket).await.map_err(|source| {
            // rustls' own errors are about certificates and protocols; the others are the network's.
            let is_refused = source.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
            let kind = if is_refused { Kind::Denied } else { Kind::Unavailable };
            let error = Error::new(kind, format!("cannot set up TLS with {host}")).source(source);
            if is_refused {
                error.hint(
                    "check sslmode, sslrootcert, sslcert and sslkey of postgres.url against the server's certificate",
                )
            } else if self.is_direct {
                // A server that does not know it takes our first bytes for a packet that cannot be, and hangs up.
                error.hint(DIRECT)
            } else {
                error
            }
        })?;
        if self.is_direct && connected.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
            // libpq refuses it, too: it may be any other service with that certificate.
            let message = format!("{host} does not say that it speaks Postgres' protocol over TLS");
            return Err(Error::new(Kind::Denied, message).hint(DIRECT));
        }
        Ok(connected)
    }
}

/// The server's certificate as `tls-server-end-point` binds to it (RFC 5929, section 4.1); none if it is signed by an
/// algorithm without a hash of its own.
pub(super) fn end_point<S>(stream: &TlsStream<S>) -> Option<Vec<u8>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    Some(match signature_algorithm(certificate)? {
        // md5WithRSA, sha1WithRSA, ecdsa-with-SHA1: too weak, SHA-256 stands in; then those with SHA-256 themselves
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04 | 0x05 | 0x0b]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02] => Sha256::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03] => {
            Sha384::digest(certificate).to_vec()
        }
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04] => {
            Sha512::digest(certificate).to_vec()
        }
        _ => return None,
    })
}

/// The object identifier of a certificate's signature algorithm: `Certificate ::= SEQUENCE { tbsCertificate,
/// signatureAlgorithm SEQUENCE { algorithm OBJECT IDENTIFIER, … }, … }` (RFC 5280, section 4.1).
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = der(certificate, 0x30)?;
    let (_, after) = der(certificate, 0x30)?;
    let (algorithm, _) = der(after, 0x30)?;
    der(algorithm, 0x06).map(|(identifier, _)| identifier)
}

/// The content of the DER element with this tag, and what comes after it.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [found, first, rest @ ..] = bytes else { return None };
    if *found != tag {
        return None;
    }
    // Below 128 it is the length; else the number of bytes that hold it.
    let (length, rest) = match first.checked_sub(0x80) {
        None => (usize::from(*first), rest),
        Some(count @ 1..=4) => {
            let (digits, rest) = rest.split_at_checked(count.into())?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        Some(_) => return None,
    };
    rest.split_at_checked(length)
}

fn certificates(parameter: &str, file: &std::path::Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(|all| all.collect::<Result<Vec<_>, _>>());
    let shown = || format!("postgres.url: {parameter}: {} cannot be read as certificates", file.display());
    let all = read.or_err(Kind::Config, shown)?;
    if all.is_empty() {
        return Err(Error::new(
            Kind::Config,
            format!("postgres.url: {parameter}: {} holds no certificate", file.display()),
        ));
    }
    Ok(all)
}

#[derive(Debug)]
enum Check {
    Nothing,
    Authority { roots: RootCertStore, trusted: Vec<CertificateDer<'static>>, and_name: bool },
}

impl Check {
    fn of(ssl: &Ssl) -> Result<Self> {
        let and_name = ssl.mode == SslMode::VerifyFull;
        if ssl.mode != SslMode::VerifyCa && !and_name {
            return Ok(Self::Nothing);
        }
        let trusted = match &ssl.roots {
            Roots::None => Vec::new(),
            Roots::File(file) => certificates("sslrootcert", file)?,
            Roots::System => rustls_native_certs::load_native_certs().certs,
        };
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(trusted.iter().cloned());
        if usable == 0 {
            return Err(Error::new(Kind::Config, "postgres.url: sslrootcert names no certificate that can be used"));
        }
        Ok(Self::Authority { roots, trusted, and_name })
    }
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Check::Authority { roots, trusted, and_name } = &self.check {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            // A server with a certificate of its own making names that very one as its root, as `openssl req -x509` and
            // PostgreSQL's documentation make it. It is an authority's, which a chain must not end with.
            if !trusted.contains(end_entity) {
                let algorithms = self.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
            }
            if *and_name {
                verify_server_name(&certificate, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_signature_algorithm_is_found_behind_long_and_short_lengths() {
        // SEQUENCE { SEQUENCE of 200 bytes, SEQUENCE { OID 1.2 }, BIT STRING }
        let mut inner = vec![0x30, 0x81, 200];
        inner.extend([0; 200]);
        inner.extend([0x30, 0x03, 0x06, 0x01, 0x2a, 0x03, 0x01, 0x00]);
        let mut outer = vec![0x30, 0x82, 0, u8::try_from(inner.len()).expect("short")];
        outer.extend(&inner);
        assert_eq!(signature_algorithm(&outer), Some(&[0x2a][..]));
        assert_eq!(signature_algorithm(&outer[..100]), None);
    }

    #[test]
    fn files_that_are_no_certificates_are_refused_by_parameter() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_owned();
        let ssl = |mode, roots, client| Ssl { mode, is_direct: false, roots, client };
        let refused = |ssl: &Ssl| Tls::new(ssl).map(drop).expect_err("it cannot be used").to_string();
        assert!(refused(&ssl(SslMode::VerifyFull, Roots::File(path.clone()), None)).contains("sslrootcert"));
        assert!(refused(&ssl(SslMode::VerifyCa, Roots::File("/nowhere".into()), None)).contains("/nowhere"));
        assert!(refused(&ssl(SslMode::Require, Roots::None, Some((path.clone(), path)))).contains("sslkey"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(signature_algorithm(&bytes).is_none_or(|found| found.len() < bytes.len()));
        }
    }
}
