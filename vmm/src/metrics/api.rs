//! What the API counts. Whoever answers a request counts it here, by its kind.

use devices::metrics::{Counter, Gauge, Metrics};

devices::metrics! {
    /// The API itself.
    pub struct ApiServerMetrics {
        /// From the request to start the process to its answering, in microseconds.
        process_startup_time_us: Gauge,
        /// CPU time until then, in microseconds, the parent's included.
        process_startup_time_cpu_us: Gauge,
        /// Answers that could not be sent.
        sync_response_fails: Counter,
        /// Requests that the VMM did not take in time.
        sync_vmm_send_timeout_count: Counter,
    }
}

devices::metrics! {
    /// What is asked for that will go.
    pub struct DeprecatedMetrics {
        /// Requests.
        deprecated_http_api_calls: Counter,
        /// Arguments on the command line.
        deprecated_cmd_line_api_calls: Counter,
    }
}

devices::metrics! {
    /// GET requests.
    pub struct GetMetrics {
        /// `/`.
        instance_info_count: Counter,
        /// `/machine-config`.
        machine_cfg_count: Counter,
        /// `/mmds`.
        mmds_count: Counter,
        /// `/version`.
        vmm_version_count: Counter,
        /// Ours: all others.
        other_count: Counter,
        /// Ours: those of all that failed.
        fails: Counter,
    }
}

devices::metrics! {
    /// PUT requests, and those of them that failed.
    pub struct PutMetrics {
        /// `/actions`.
        actions_count: Counter,
        /// `/actions`, failed.
        actions_fails: Counter,
        /// `/boot-source`.
        boot_source_count: Counter,
        /// `/boot-source`, failed.
        boot_source_fails: Counter,
        /// `/drives/{id}`.
        drive_count: Counter,
        /// `/drives/{id}`, failed.
        drive_fails: Counter,
        /// `/logger`.
        logger_count: Counter,
        /// `/logger`, failed.
        logger_fails: Counter,
        /// `/machine-config`.
        machine_cfg_count: Counter,
        /// `/machine-config`, failed.
        machine_cfg_fails: Counter,
        /// `/cpu-config`.
        cpu_cfg_count: Counter,
        /// `/cpu-config`, failed.
        cpu_cfg_fails: Counter,
        /// `/metrics`.
        metrics_count: Counter,
        /// `/metrics`, failed.
        metrics_fails: Counter,
        /// `/network-interfaces/{id}`.
        network_count: Counter,
        /// `/network-interfaces/{id}`, failed.
        network_fails: Counter,
        /// `/mmds` and `/mmds/config`.
        mmds_count: Counter,
        /// `/mmds` and `/mmds/config`, failed.
        mmds_fails: Counter,
        /// `/vsock`.
        vsock_count: Counter,
        /// `/vsock`, failed.
        vsock_fails: Counter,
        /// `/pmem/{id}`.
        pmem_count: Counter,
        /// `/pmem/{id}`, failed.
        pmem_fails: Counter,
        /// `/serial`.
        serial_count: Counter,
        /// `/serial`, failed.
        serial_fails: Counter,
        /// Ours: all others.
        other_count: Counter,
        /// Ours: all others, failed.
        other_fails: Counter,
    }
}

devices::metrics! {
    /// PATCH requests, and those of them that failed.
    pub struct PatchMetrics {
        /// `/drives/{id}`.
        drive_count: Counter,
        /// `/drives/{id}`, failed.
        drive_fails: Counter,
        /// `/network-interfaces/{id}`.
        network_count: Counter,
        /// `/network-interfaces/{id}`, failed.
        network_fails: Counter,
        /// `/machine-config`.
        machine_cfg_count: Counter,
        /// `/machine-config`, failed.
        machine_cfg_fails: Counter,
        /// `/mmds`.
        mmds_count: Counter,
        /// `/mmds`, failed.
        mmds_fails: Counter,
        /// Ours: all others.
        other_count: Counter,
        /// Ours: all others, failed.
        other_fails: Counter,
    }
}

devices::metrics! {
    /// DELETE requests: ours.
    pub struct DeleteMetrics {
        /// All.
        count: Counter,
        /// Those that failed.
        fails: Counter,
    }
}

/// Everything about the API.
#[derive(Debug, Default)]
pub struct ApiMetrics {
    /// The API itself.
    pub server: ApiServerMetrics,
    /// What will go.
    pub deprecated: DeprecatedMetrics,
    /// GET requests.
    pub get: GetMetrics,
    /// PUT requests.
    pub put: PutMetrics,
    /// PATCH requests.
    pub patch: PatchMetrics,
    /// DELETE requests.
    pub delete: DeleteMetrics,
}

impl ApiMetrics {
    pub(super) fn groups(&self) -> [(&'static str, &dyn Metrics); 6] {
        [
            ("api_server", &self.server),
            ("deprecated_api", &self.deprecated),
            ("get_api_requests", &self.get),
            ("put_api_requests", &self.put),
            ("patch_api_requests", &self.patch),
            ("delete_api_requests", &self.delete),
        ]
    }
}
