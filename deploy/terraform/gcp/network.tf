# One network with one subnet. Nodes have private addresses only.

locals {
  labels = merge({ sie-cluster = var.name }, var.labels)
}

resource "google_compute_network" "this" {
  project                 = var.project_id
  name                    = var.name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "nodes" {
  project                  = var.project_id
  name                     = "${var.name}-nodes"
  region                   = var.region
  network                  = google_compute_network.this.id
  ip_cidr_range            = cidrsubnet(var.vpc_cidr, 4, 0)
  private_ip_google_access = true # the bucket and the registry, without an address of the internet

  secondary_ip_range {
    range_name    = "pods"
    ip_cidr_range = cidrsubnet(var.vpc_cidr, 1, 1)
  }

  secondary_ip_range {
    range_name    = "services"
    ip_cidr_range = cidrsubnet(var.vpc_cidr, 4, 1)
  }
}

resource "google_compute_router" "this" {
  count   = var.internet_egress ? 1 : 0
  project = var.project_id
  name    = var.name
  region  = var.region
  network = google_compute_network.this.id
}

resource "google_compute_router_nat" "this" {
  count                              = var.internet_egress ? 1 : 0
  project                            = var.project_id
  name                               = var.name
  region                             = var.region
  router                             = google_compute_router.this[0].name
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"
}

# Google's APIs and registries get addresses that a network policy can name, instead of thousands of public ones. They are
# reachable from this network only.
locals {
  private_apis_cidr = "199.36.153.8/30"
  private_apis      = { googleapis = "googleapis.com.", registry = "pkg.dev." }
}

resource "google_dns_managed_zone" "private_apis" {
  for_each    = local.private_apis
  project     = var.project_id
  name        = "${var.name}-${each.key}"
  dns_name    = each.value
  description = "Private addresses of Google's APIs"
  visibility  = "private"
  labels      = local.labels

  private_visibility_config {
    networks {
      network_url = google_compute_network.this.id
    }
  }
}

resource "google_dns_record_set" "private_apis" {
  for_each     = local.private_apis
  project      = var.project_id
  managed_zone = google_dns_managed_zone.private_apis[each.key].name
  name         = each.key == "googleapis" ? "private.${each.value}" : each.value
  type         = "A"
  ttl          = 300
  rrdatas      = [for index in range(4) : cidrhost(local.private_apis_cidr, index)]
}

resource "google_dns_record_set" "private_apis_names" {
  for_each     = local.private_apis
  project      = var.project_id
  managed_zone = google_dns_managed_zone.private_apis[each.key].name
  name         = "*.${each.value}"
  type         = "CNAME"
  ttl          = 300
  rrdatas      = [google_dns_record_set.private_apis[each.key].name]
}
