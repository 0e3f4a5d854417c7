//! TLS to an engine.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;

/// What is believed of an engine that is spoken to with TLS: certificates of `authority`, a file of PEM, or what the
/// system trusts.
///
/// # Errors
/// A sentence: the file cannot be read, or there is no certificate.
pub fn client(authority: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match authority {
        Some(file) => {
            let wrong =
                |why: &dyn std::fmt::Display| format!("--queue-ca {}: {why}", file.display());
            let all = CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))?;
            for certificate in all {
                let certificate = certificate.map_err(|error| wrong(&error))?;
                roots.add(certificate).map_err(|error| wrong(&error))?;
            }
            if roots.is_empty() {
                return Err(wrong(&"there is no certificate in it"));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(
                    "--queue: this system trusts no certificates; say which with --queue-ca FILE"
                        .into(),
                );
            }
        }
    }
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
    let config = config.map_err(|error| format!("--queue: {error}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
