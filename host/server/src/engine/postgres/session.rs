//! Connections to PostgreSQL, with TLS or without, and what they remember.

use super::Parameters;
use std::collections::HashMap;
use std::future::poll_fn;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, Error, NoTls, Row, Statement, Transaction,
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How connections are made.
pub(super) struct Connector {
    config: Config,
    /// Where the address says `sslmode=require`: then the server's certificate and its name are checked, too.
    tls: Option<MakeRustlsConnect>,
}

impl Connector {
    /// # Errors
    /// A sentence: the certificates that are to be trusted cannot be read.
    pub fn new(config: Config, authority: Option<&Path>) -> Result<Self, String> {
        let tls = match config.get_ssl_mode() {
            SslMode::Require => {
                Some(MakeRustlsConnect::new(crate::engine::tls::client(authority)?))
            }
            _ if authority.is_some() => {
                return Err("--queue-ca is for an address with sslmode=require".into());
            }
            _ => None,
        };
        Ok(Self { config, tls })
    }

    /// A connection, which ends when its client goes. What others notify is given to `heard`.
    pub async fn connect(
        &self,
        heard: Option<UnboundedSender<String>>,
    ) -> Result<(Session, JoinHandle<()>), Error> {
        let (client, driver) = match &self.tls {
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                (client, tokio::spawn(drive(connection, heard)))
            }
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                (client, tokio::spawn(drive(connection, heard)))
            }
        };
        client.batch_execute(super::schema::SESSION).await?;
        Ok((Session { client, known: HashMap::new() }, driver))
    }
}

/// Until it is cut; whoever asks next is told.
async fn drive<S, T>(mut connection: Connection<S, T>, heard: Option<UnboundedSender<String>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        if let (AsyncMessage::Notification(notification), Some(heard)) = (message, &heard)
            && heard.send(notification.payload().to_owned()).is_err()
        {
            return;
        }
    }
}

/// A connection, and the statements that it knows.
pub(super) struct Session {
    pub client: Client,
    known: HashMap<String, Statement>,
}

/// The statement of a text that this connection knows, or learns now.
async fn known<'a>(
    known: &'a mut HashMap<String, Statement>,
    client: &Client,
    sql: &str,
) -> std::result::Result<&'a Statement, Error> {
    if !known.contains_key(sql) {
        let statement = client.prepare(sql).await?;
        known.insert(sql.to_owned(), statement);
    }
    Ok(&known[sql])
}

impl Session {
    pub async fn query(
        &mut self,
        sql: &str,
        with: Parameters<'_>,
    ) -> std::result::Result<Vec<Row>, Error> {
        let statement = known(&mut self.known, &self.client, sql).await?.clone();
        self.client.query(&statement, with).await
    }

    pub async fn execute(
        &mut self,
        sql: &str,
        with: Parameters<'_>,
    ) -> std::result::Result<u64, Error> {
        let statement = known(&mut self.known, &self.client, sql).await?.clone();
        self.client.execute(&statement, with).await
    }

    /// Begins a transaction whose statements are these; they are prepared before.
    pub async fn begin<const N: usize>(
        &mut self,
        statements: [&str; N],
    ) -> std::result::Result<(Transaction<'_>, [Statement; N]), Error> {
        let mut prepared = Vec::with_capacity(N);
        for sql in statements {
            prepared.push(known(&mut self.known, &self.client, sql).await?.clone());
        }
        let transaction = self.client.transaction().await?;
        let mut prepared = prepared.into_iter();
        // As many as were pushed.
        let statements = std::array::from_fn(|_| prepared.next().expect("one for each"));
        Ok((transaction, statements))
    }
}
